"""Who sings: an omni-scale residual network that turns seconds of a voice into a direction in 512 dimensions.

Built after PLR-OSNet (Xie, Wu, Zheng, "Learning Diverse Features with Part-Level Resolution for Person
Re-Identification", PRCV 2020), which puts a global and a part-level branch on the blocks of OSNet (Zhou, Yang,
Cavallaro, Xiang, "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019). A person is recognised by body
parts from head to foot, a voice by its registers, so here the parts are bands of the spectrum: pitch and chest
resonance are low, vowel formants higher, breath and sibilants at the top, and a trait such as a lisp shows in only one.
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from stages.nets.codec.mel import LogMel

_STREAMS = 4  # of an omni-scale block: 3, 5, 7 and 9 bins wide
_BOTTLENECK = 4  # a block works on a quarter of its channels
_GATE_REDUCTION = 16
_EPS = 1e-5


class SpeakerEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # both declare config_name
    """Log-mel bands of a voice, 0.2 s or longer and of any loudness, to a unit vector.

    The branches share the stem and the first stages; each has a last stage of its own. The global branch pools mean and
    deviation over all frames and bands, the part branch the mean over frames of each part of the spectrum; their
    concatenation is projected.

    Args:
        sampling_rate: of the waveforms, Hz.
        n_fft: FFT size of the spectrogram.
        win_length: window length of the spectrogram, samples.
        hop_length: hop of the spectrogram, samples.
        f_min: lower end of the mel bands, Hz.
        f_max: upper end of the mel bands, Hz; Spleeter's stems end at 11 kHz.
        n_mels: number of mel bands.
        channels: channels of the stem and of each stage. The default is OSNet x1.0.
        blocks: omni-scale blocks in each stage; one entry fewer than `channels`.
        parts: number of parts that the spectrum is divided into.
        embedding_dim: dimension of the embedding.

    Raises:
        ValueError: fewer than two stages, `blocks` does not match `channels`, or too few bands for the parts.
    """

    @register_to_config
    def __init__(
        self,
        sampling_rate: int = 24_000,
        n_fft: int = 1024,
        win_length: int = 600,
        hop_length: int = 240,
        f_min: float = 40.0,
        f_max: float = 11_000.0,
        n_mels: int = 80,
        channels: Sequence[int] = (64, 256, 384, 512),
        blocks: Sequence[int] = (2, 2, 2),
        parts: int = 5,
        embedding_dim: int = 512,
    ) -> None:
        super().__init__()
        if len(blocks) != len(channels) - 1 or len(blocks) < 2:
            raise ValueError(f"{len(channels)} channels go with {len(channels) - 1} stages of blocks, two or more")
        rows = n_mels // 2 ** len(blocks)  # height of the feature map where the branches split
        if rows < parts:
            raise ValueError(f"{n_mels} bands leave {rows} rows after {len(blocks)} stages, fewer than {parts} parts")
        self.mel = LogMel(sampling_rate, n_fft, win_length, hop_length, f_min, f_max, n_mels)
        self.stem = nn.Sequential(_Convolution(1, channels[0], 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
        shared = [_stage(*sizes) for sizes in zip(channels[:-2], channels[1:-1], blocks[:-1], strict=True)]
        halved = [_halving(wide) for wide in channels[1:-2]]  # the branches keep the resolution of the last one
        self.shared = nn.Sequential(*(layer for pair in zip_longest(shared, halved) for layer in pair if layer))
        self.whole = _stage(channels[-2], channels[-1], blocks[-1])
        self.by_parts = _stage(channels[-2], channels[-1], blocks[-1])
        self.parts = parts
        self.projection = nn.Sequential(
            nn.Linear((2 + parts) * channels[-1], embedding_dim, bias=False), nn.BatchNorm1d(embedding_dim)
        )
        self.apply(_initialise)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Mono waveforms float32 [N, samples] in -1..1 to log-mel bands float32 [N, n_mels, samples // hop_length]."""
        return self.mel(waveform)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Log-mel bands [N, n_mels, frames] to embeddings [N, embedding_dim] of unit length."""
        maps = self.shared(self.stem(_levelled(log_mel)[:, None]))
        whole, by_parts = self.whole(maps), self.by_parts(maps)
        variance, mean = torch.var_mean(whole, dim=(2, 3), correction=0)
        bands = F.adaptive_avg_pool2d(by_parts, (self.parts, 1)).flatten(1)
        pooled = torch.cat([mean, (variance + _EPS).sqrt(), bands], dim=1)
        return F.normalize(self.projection(pooled), dim=1)


class OmniScaleBlock(nn.Module):
    """A residual block that combines several scales, weighted by the input.

    Stream t of 1..4 stacks t Lite 3x3 convolutions, with a receptive field of 2t + 1 bins each way. One gate, shared by
    all streams, weights the channels of each stream by their content.
    """

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        inner = wide // _BOTTLENECK
        self.reduce = _Convolution(narrow, inner, 1)
        self.streams = nn.ModuleList(
            nn.Sequential(*(LiteConvolution(inner) for _ in range(depth))) for depth in range(1, _STREAMS + 1)
        )
        self.gate = _AggregationGate(inner)
        self.expand = _linear_convolution(inner, wide)
        self.skip = nn.Identity() if narrow == wide else _linear_convolution(narrow, wide)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, narrow, bands, frames] to [N, wide, bands, frames]."""
        reduced = self.reduce(x)
        scales = [stream(reduced) for stream in self.streams]
        mixed = sum(self.gate(scale) * scale for scale in scales)
        return F.relu(self.expand(mixed) + self.skip(x))


class LiteConvolution(nn.Sequential):
    """Lite 3x3: a pointwise, then a depthwise 3x3 convolution, with about a ninth of the weights of a full one."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )


class _AggregationGate(nn.Sequential):
    """Weights [N, channels, 1, 1] in 0..1 for the channels of a stream, computed from their means."""

    def __init__(self, channels: int) -> None:
        hidden = max(1, channels // _GATE_REDUCTION)
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )


class _Convolution(nn.Sequential):
    def __init__(self, narrow: int, wide: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(narrow, wide, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(wide), nn.ReLU()
        )


def _linear_convolution(narrow: int, wide: int) -> nn.Sequential:
    """A pointwise convolution with batch norm and without ReLU."""
    return nn.Sequential(nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide))


def _stage(narrow: int, wide: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(OmniScaleBlock(narrow if i == 0 else wide, wide) for i in range(blocks)))


def _halving(channels: int) -> nn.Sequential:
    return nn.Sequential(_Convolution(channels, channels, 1), nn.AvgPool2d(2, stride=2))


def _levelled(log_mel: Tensor) -> Tensor:
    """Mean 0, deviation 1 over each voice's bands and frames, which removes its loudness but keeps its spectrum."""
    variance, mean = torch.var_mean(log_mel, dim=(1, 2), keepdim=True, correction=0)
    return (log_mel - mean) / (variance + _EPS).sqrt()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
