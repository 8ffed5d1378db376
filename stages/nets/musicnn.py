"""musicnn: a tagger whose first filters span timbres (tall) and rhythms (long).

Pons and Serra, "musicnn: pre-trained convolutional neural networks for music audio tagging", ISMIR 2019 late-breaking;
architecture of Pons et al., "End-to-end learning for music audio tagging at scale", ISMIR 2018.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.signal.spectrum import magnitudes, mel_bands

RATE_HZ = 16_000
MELS = 96
PATCH = 187  # frames of a patch, 3 s
_TIMBRAL = (0.4, 0.7)  # height of the tall filters, as a share of the mel bands
_TEMPORAL = (128, 64, 32)  # length of the long filters, frames
_WIDTH = 64
_FRONT_END = 2 * 204 + 3 * 51


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Mono audio [samples] at RATE_HZ to the mel spectrogram float32 [frames, MELS] that musicnn was trained on."""
    power = mel_bands(magnitudes(audio, 512, 256) ** 2, RATE_HZ, MELS).T
    stored = power.astype(np.float16).astype(np.float32)  # the training set was stored with this precision
    return np.log10(10_000 * stored + 1)


def patches(audio: np.ndarray) -> Tensor:
    """Mel patches [patches, PATCH, MELS] of mono audio; a remainder is dropped, a track too short is repeated."""
    mel = log_mel(audio)
    if len(mel) < PATCH:
        mel = np.resize(mel, (PATCH, mel.shape[1]))
    whole = len(mel) // PATCH * PATCH
    return torch.from_numpy(mel[:whole].reshape(-1, PATCH, mel.shape[1]))


class _Filters(nn.Module):
    """[batch, 1, frames, MELS] to [batch, channels, frames]: the strongest normalised response at any height.

    Batch norm preserves the order of a filter's responses, or reverses it where its weight is negative. So only the
    greatest response of all heights, or the least, is rectified and normalised: the same result for less work.
    """

    def __init__(self, channels: int, length: int, height: int) -> None:
        super().__init__()
        self.pad = (0, 0, (length - 1) // 2, length // 2)  # as many frames out as in
        self.conv = nn.Conv2d(1, channels, (length, height))
        self.norm = nn.BatchNorm1d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        sign = self.norm.weight.sign()
        # [batch, frames, heights, channels], the layout in which the maximum over heights is fastest
        responses = F.conv2d(F.pad(x, self.pad), self.conv.weight * sign[:, None, None, None]).movedim(1, 3)
        strongest = responses.amax(2) * sign + self.conv.bias  # type: ignore[operator]
        return self.norm(F.relu(strongest).transpose(1, 2))


class _Layer(nn.Module):
    """A layer of the mid-end: [batch, inputs, frames] to [batch, 64, frames]."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, _WIDTH, 7, padding=3)
        self.norm = nn.BatchNorm1d(_WIDTH, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(x)))


class Musicnn(nn.Module):
    """Filters, three densely connected layers, pooling over time, two dense layers."""

    def __init__(self, tags: int = 50) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(1, eps=1e-3)
        self.timbral = nn.ModuleList(_Filters(204, 7, int(share * MELS)) for share in _TIMBRAL)
        self.temporal = nn.ModuleList(_Filters(51, length, 1) for length in _TEMPORAL)
        self.mid_end = nn.ModuleList(_Layer(inputs) for inputs in (_FRONT_END, _WIDTH, _WIDTH))
        pooled = 2 * (_FRONT_END + 3 * _WIDTH)
        self.pool_norm = nn.BatchNorm1d(pooled, eps=1e-3)
        self.penultimate = nn.Linear(pooled, 200)
        self.penultimate_norm = nn.BatchNorm1d(200, eps=1e-3)
        self.output = nn.Linear(200, tags)

    @classmethod
    def load(cls, folder: Path) -> "Musicnn":
        """The pretrained network from a folder with `model.safetensors`."""
        model = cls()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on a CPU
        return model.eval()

    @torch.inference_mode()
    def forward(self, patches: Tensor) -> Tensor:
        """Patches of the log mel spectrogram [batch, PATCH, MELS] to tag probabilities [batch, tags]."""
        x = self.input_norm(patches[:, None])
        front = torch.cat([block(x) for block in (*self.timbral, *self.temporal)], dim=1)
        first = self.mid_end[0](front)
        second = self.mid_end[1](first) + first
        third = self.mid_end[2](second) + second
        features = torch.cat([front, first, second, third], dim=1)
        pooled = torch.stack([features.amax(2), features.mean(2)], dim=2).flatten(1)  # interleaved max and mean
        hidden = self.penultimate_norm(F.relu(self.penultimate(self.pool_norm(pooled))))
        return torch.sigmoid(self.output(hidden))

    def mean_scores(self, patches: Tensor) -> list[float]:
        """Probability of every tag, averaged over the patches of a track [patches, PATCH, MELS]."""
        # One by one: the filters' responses to a single patch already take 15 MB, more than most caches hold.
        return torch.cat([self(patch) for patch in patches.split(1)]).mean(0).tolist()
