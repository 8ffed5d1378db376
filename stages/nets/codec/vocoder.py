"""The vocoder of the music codec: log-mel bands to a waveform.

A ConvNeXt backbone (Liu et al., "A ConvNet for the 2020s", 2022) over mel frames feeds a HiFi-GAN generator (Kong et
al., 2020). Every layer is a convolution over time, so a window of frames gives the same as the whole signal, given
`ADaMoSHiFiGANV1.reach` frames of context on each side.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import ceil

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from stages.nets.codec.mel import LogMel

_EPS = 1e-6
_LAYER_SCALE = 1e-6


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [N, channels, frames]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class _ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), _LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.dwconv(x).transpose(1, 2))
        hidden = self.gamma * self.pwconv2(F.gelu(self.pwconv1(hidden)))
        return x + hidden.transpose(1, 2)


class _Backbone(nn.Module):
    """Mel bands [N, input_channels, frames] to features [N, dims[-1], frames]."""

    def __init__(self, input_channels: int, depths: Sequence[int], dims: Sequence[int], kernel: int) -> None:
        super().__init__()
        stem = nn.Sequential(
            nn.Conv1d(input_channels, dims[0], kernel, padding=kernel // 2, padding_mode="replicate"),
            _ChannelNorm(dims[0], eps=_EPS),
        )
        widen = [
            nn.Sequential(_ChannelNorm(narrow, eps=_EPS), nn.Conv1d(narrow, wide, 1)) for narrow, wide in pairwise(dims)
        ]
        self.channel_layers = nn.ModuleList([stem, *widen])
        self.stages = nn.ModuleList(
            nn.Sequential(*(_ConvNeXtBlock(dim, kernel) for _ in range(depth)))
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm = _ChannelNorm(dims[-1], eps=_EPS)

        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, mel: Tensor) -> Tensor:
        for channel_layer, stage in zip(self.channel_layers, self.stages, strict=True):
            mel = stage(channel_layer(mel))
        return self.norm(mel)


def _normalise_weight(conv: nn.Conv1d | nn.ConvTranspose1d) -> None:
    """Split the weight into direction `weight_v` and length `weight_g` (Salimans and Kingma, 2016), as released."""
    weight = conv.weight.data
    nn.init.normal_(weight, std=0.01)
    del conv.weight
    conv.weight_g = nn.Parameter(weight.flatten(1).norm(dim=1)[:, None, None])
    conv.weight_v = nn.Parameter(weight)


def _weight(conv: "_Conv | _Upsample") -> Tensor:
    return torch._weight_norm(conv.weight_v, conv.weight_g, 0) if conv.folded is None else conv.folded


class _Conv(nn.Conv1d):
    """Weight-normalised convolution that keeps the number of frames."""

    weight_g: Tensor
    weight_v: Tensor
    folded: Tensor | None = None

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, dilation=dilation)
        self.margin = (kernel - 1) * dilation // 2
        _normalise_weight(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, _weight(self), self.bias, padding=self.margin, dilation=self.dilation)


class _Upsample(nn.ConvTranspose1d):
    """Weight-normalised transposed convolution: `rate` samples out for each sample in."""

    weight_g: Tensor
    weight_v: Tensor
    folded: Tensor | None = None

    def __init__(self, inputs: int, outputs: int, kernel: int, rate: int) -> None:
        super().__init__(inputs, outputs, kernel, stride=rate)
        self.margin = (kernel - rate) // 2
        _normalise_weight(self)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: ARG002
        return F.conv_transpose1d(x, _weight(self), self.bias, stride=self.stride, padding=self.margin)


class _ResBlock(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_Conv(channels, channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_Conv(channels, channels, kernel) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.silu(dilated(F.silu(x))))
        return x


class _Head(nn.Module):
    """Features [N, inputs, frames] to a waveform [N, 1, frames * product of rates] in (-1, 1)."""

    def __init__(
        self,
        inputs: int,
        channels: int,
        rates: Sequence[int],
        rate_kernels: Sequence[int],
        kernels: Sequence[int],
        dilations: Sequence[Sequence[int]],
        pre_kernel: int,
        post_kernel: int,
    ) -> None:
        super().__init__()
        widths = [channels // 2**i for i in range(len(rates) + 1)]
        self.conv_pre = _Conv(inputs, channels, pre_kernel)
        self.ups = nn.ModuleList(
            _Upsample(wide, narrow, kernel, rate)
            for wide, narrow, kernel, rate in zip(widths, widths[1:], rate_kernels, rates, strict=False)
        )
        self.resblocks = nn.ModuleList(
            _ResBlock(width, kernel, spread)
            for width in widths[1:]
            for kernel, spread in zip(kernels, dilations, strict=True)
        )
        self.conv_post = _Conv(widths[-1], 1, post_kernel)

    def forward(self, features: Tensor) -> Tensor:
        x = self.conv_pre(features)
        parallel = len(self.resblocks) // len(self.ups)
        for i, upsample in enumerate(self.ups):
            x = upsample(F.silu(x))
            x = sum(block(x) for block in self.resblocks[i * parallel : (i + 1) * parallel]) / parallel
        return torch.tanh(self.conv_post(F.silu(x)))


class ADaMoSHiFiGANV1(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Mono vocoder of the music codec; defaults are the released 44.1 kHz model of 103 M parameters.

    Parameter names and shapes are those of the released `music_vocoder/` folder. The released models have one kernel
    size in the backbone, no stochastic depth and no pitch template; other values raise ValueError.
    """

    @register_to_config
    def __init__(
        self,
        input_channels: int = 128,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (128, 256, 384, 512),
        drop_path_rate: float = 0.0,
        kernel_sizes: Sequence[int] = (7,),
        upsample_rates: Sequence[int] = (4, 4, 2, 2, 2, 2, 2),
        upsample_kernel_sizes: Sequence[int] = (8, 8, 4, 4, 4, 4, 4),
        resblock_kernel_sizes: Sequence[int] = (3, 7, 11, 13),
        resblock_dilation_sizes: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5), (1, 3, 5)),
        num_mels: int = 512,
        upsample_initial_channel: int = 1024,
        use_template: bool = False,
        pre_conv_kernel_size: int = 13,
        post_conv_kernel_size: int = 13,
        sampling_rate: int = 44_100,
        n_fft: int = 2048,
        win_length: int = 2048,
        hop_length: int = 512,
        f_min: float = 40,
        f_max: float = 16_000,
        n_mels: int = 128,
    ) -> None:
        super().__init__()
        if use_template or drop_path_rate or len(kernel_sizes) != 1:
            raise ValueError("use_template, drop_path_rate and several kernel_sizes are not part of the released model")
        self.backbone = _Backbone(input_channels, depths, dims, kernel_sizes[0])
        self.head = _Head(
            num_mels,
            upsample_initial_channel,
            upsample_rates,
            upsample_kernel_sizes,
            resblock_kernel_sizes,
            resblock_dilation_sizes,
            pre_conv_kernel_size,
            post_conv_kernel_size,
        )
        self.mel_transform = LogMel(sampling_rate, n_fft, win_length, hop_length, f_min, f_max, n_mels)

    @property
    def reach(self) -> int:
        """Mel frames to each side of a sample that can change it: the receptive field, rounded up."""
        config = self.config
        backbone = (1 + sum(config["depths"])) * (config["kernel_sizes"][0] // 2)
        block = max(
            sum(kernel // 2 * (dilation + 1) for dilation in dilations)
            for kernel, dilations in zip(
                config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True
            )
        )
        head, rate = float(config["pre_conv_kernel_size"] // 2), 1
        for step, kernel in zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True):
            head += kernel / (2 * step) / rate
            rate *= step
            head += block / rate
        return backbone + ceil(head + config["post_conv_kernel_size"] // 2 / rate)

    @contextmanager
    def folded_weights(self) -> Iterator[None]:
        """Compute every weight once inside the context rather than at every call: for many windows of one song."""
        convolutions = [module for module in self.modules() if isinstance(module, _Conv | _Upsample)]
        for convolution in convolutions:
            convolution.folded = _weight(convolution)
        try:
            yield
        finally:
            for convolution in convolutions:
                convolution.folded = None

    def encode(self, waveform: Tensor) -> Tensor:
        """Mono waveforms [N, samples] to log-mel bands float32 [N, n_mels, samples // hop_length]."""
        return self.mel_transform(waveform)

    def decode(self, mel: Tensor) -> Tensor:
        """Log-mel bands [N, n_mels, frames] to mono waveforms [N, frames * hop_length] in (-1, 1)."""
        return self.head(self.backbone(mel))[:, 0]

    def forward(self, mel: Tensor) -> Tensor:
        """As `decode`."""
        return self.decode(mel)
