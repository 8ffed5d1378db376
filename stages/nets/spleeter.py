"""Spleeter with two stems: one U-Net per stem estimates its magnitudes, their ratio is the mask.

Hennequin, Khlif, Voituret, Moussallam, "Spleeter: a fast and efficient music source separation tool with pre-trained
models", JOSS 2020; the U-Net is that of Jansson et al., ISMIR 2017.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

N_FFT = 4096
HOP = 1024
BINS = 1024  # the lower half; everything above 11 kHz counts as accompaniment
SEGMENT = 512  # frames per network call, 11.9 s
_EPSILON = 1e-10
_CHANNELS = (2, 16, 32, 64, 128, 256, 512)
_OVERLAP = N_FFT - HOP
_WINDOW_GAIN = 1.5  # sum of the four squared Hann windows over any sample


class _Down(nn.Module):
    """Halves time and frequency. The skip connection carries the convolution before its normalisation."""

    def __init__(self, inputs: int, outputs: int, bottleneck: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=5, stride=2)
        self.norm = None if bottleneck else nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.conv(F.pad(x, (1, 2, 1, 2)))
        return skip, skip if self.norm is None else F.leaky_relu_(self.norm(skip), 0.2)


class _Up(nn.Module):
    """Doubles time and frequency. `conv` computes all four outputs of each input: see `_four_outputs`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4 * outputs, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.pixel_shuffle(self.conv(x), 2).relu_())


class UNet(nn.Module):
    """Estimates the magnitudes of one stem."""

    def __init__(self) -> None:
        super().__init__()
        depth = len(_CHANNELS) - 1
        self.encoder = nn.ModuleList(
            _Down(_CHANNELS[i], _CHANNELS[i + 1], bottleneck=i == depth - 1) for i in range(depth)
        )
        outputs = (*_CHANNELS[depth - 1 : 0 : -1], 1)
        inputs = (_CHANNELS[depth], *(2 * channels for channels in outputs[:-1]))
        self.decoder = nn.ModuleList(_Up(i, o) for i, o in zip(inputs, outputs, strict=True))
        self.mask = nn.Conv2d(1, 2, kernel_size=4, dilation=2, padding=3)

    def forward(self, magnitude: Tensor) -> Tensor:
        """Magnitudes [batch, 2, SEGMENT, BINS] of a mix to those of the stem, same shape."""
        x, skips = magnitude, []
        for down in self.encoder:
            skip, x = down(x)
            skips.append(skip)
        skips.pop()
        for up in self.decoder[:-1]:
            x = torch.cat([skips.pop(), up(x)], dim=1)
        return torch.sigmoid(self.mask(self.decoder[-1](x))) * magnitude


class Spleeter(nn.Module):
    """Separates singing from accompaniment."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.vocals = UNet()
        self.accompaniment = UNet()
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    @classmethod
    def load(cls, folder: Path) -> "Spleeter":
        """The pretrained network from a folder with `model.safetensors`."""
        parameters = load_file(folder / "model.safetensors")
        for name in filter(re.compile(r"decoder\.\d+\.conv").search, parameters):
            parameters[name] = _four_outputs(parameters[name])
        model = cls()
        model.load_state_dict(parameters)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on a CPU
        return model.eval()

    def forward(self, magnitude: Tensor) -> Tensor:
        """Magnitudes [batch, 2, SEGMENT, BINS] to the share of vocals in each bin's energy, same shape."""
        magnitude = magnitude.contiguous(memory_format=torch.channels_last)
        vocals, accompaniment = self.vocals(magnitude).square(), self.accompaniment(magnitude).square()
        return (vocals + _EPSILON / 2) / (vocals + accompaniment + _EPSILON)

    @torch.inference_mode()
    def separate(self, mix: np.ndarray) -> Iterator[np.ndarray]:
        """The vocals of a stereo mix at 44.1 kHz, both float32 [2, frames], piece by piece.

        Memory does not grow with the song: each segment of SEGMENT frames is transformed, masked and overlap-added on
        its own, and the segments join seamlessly because all frames are on one grid.
        """
        length = mix.shape[1]
        # A frame of zeros on the left, as in Spleeter, puts every sample under four windows.
        step, start = SEGMENT * HOP, -N_FFT
        tail = torch.zeros(2, _OVERLAP)
        while start < length:
            block = self._vocals(_cut(mix, start, step + _OVERLAP))
            block[:, :_OVERLAP] += tail
            tail = block[:, step:]
            yield block[:, max(0, -start) : min(step, length - start)].numpy()
            start += step

    def _vocals(self, block: Tensor) -> Tensor:
        """The vocals of one segment [2, samples], with its ends left windowed so that its neighbours can be added."""
        spectrum = torch.fft.rfft(block.unfold(1, N_FFT, HOP) * self.window)[..., :BINS]  # [2, SEGMENT, BINS]
        frames = torch.fft.irfft(spectrum * self(spectrum.abs()[None])[0], N_FFT) * (self.window / _WINDOW_GAIN)
        hops = block.new_zeros(2, block.shape[1] // HOP, HOP)
        for late, part in enumerate(frames.unflatten(2, (-1, HOP)).unbind(2)):
            hops[:, late : late + SEGMENT] += part
        return hops.flatten(1)


def _four_outputs(transposed: Tensor) -> Tensor:
    """Weight [inputs, outputs, 5, 5] or bias [outputs] of a transposed convolution, stride 2, for a plain convolution.

    Output 2i + p depends on input i + d through tap 1 + p - 2d, if there is one: along each axis the even outputs are a
    convolution with the taps 3, 1 and none, the odd ones with 4, 2 and 0. All four kinds of outputs together are one
    convolution, [4 outputs, inputs, 3, 3] in the order of `pixel_shuffle`, which is much faster on a CPU.
    """
    if transposed.ndim == 1:
        return transposed.repeat_interleave(4)
    pairs = F.pad(transposed, (1, 0, 1, 0)).unflatten(3, (3, 2)).unflatten(2, (3, 2)).flip(2, 4)
    return pairs.permute(1, 3, 5, 0, 2, 4).flatten(0, 2)


def _cut(mix: np.ndarray, start: int, size: int) -> Tensor:
    """Samples `start` to `start + size` of a mix, zeros where there are none."""
    begin, end = max(0, start), min(mix.shape[1], start + size)
    block = torch.zeros(2, size)
    block[:, begin - start : end - start] = torch.from_numpy(mix[:, begin:end])
    return block
