"""The codec's log-mel spectrogram: what the autoencoder encodes and the vocoder turns back into sound.

Slaney's mel scale and filter norm as in his Auditory Toolbox (1998); magnitudes are smoothed before the root so that
the gradient stays finite in silence, as in HiFi-GAN (Kong et al., 2020).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.signal.spectrum import mel_filters

SMOOTHING = 1e-6  # of squared magnitudes
_FLOOR = 1e-5


class _Spectrogram(nn.Module):
    """Magnitudes [..., n_fft / 2 + 1, frames] of frames that start `hop_length` samples apart; one frame per hop."""

    window: Tensor

    def __init__(self, n_fft: int, win_length: int, hop_length: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.register_buffer("window", torch.hann_window(win_length))

    def forward(self, waveform: Tensor) -> Tensor:
        return torch.view_as_real(self.spectrum(waveform)).square().sum(-1).add(SMOOTHING).sqrt()

    def spectrum(self, waveform: Tensor) -> Tensor:
        """The complex spectrum behind the magnitudes."""
        margin = self.n_fft - self.hop_length
        padded = F.pad(waveform, (margin // 2, margin - margin // 2), mode="reflect")
        return torch.stft(
            padded,
            self.n_fft,
            hop_length=self.hop_length,
            win_length=len(self.window),
            window=self.window,
            center=False,
            return_complex=True,
        )

    def inverse(self, spectrum: Tensor) -> Tensor:
        """The waveform [N, frames * hop] whose spectrum is nearest to `spectrum` [N, bins, frames] by least squares."""
        margin, frames = self.n_fft - self.hop_length, spectrum.shape[-1]
        side = (self.n_fft - len(self.window)) // 2
        window = F.pad(self.window, (side, self.n_fft - len(self.window) - side))[:, None]

        def added(pieces: Tensor) -> Tensor:
            length = frames * self.hop_length + margin
            sums = F.fold(pieces, (1, length), (1, self.n_fft), stride=(1, self.hop_length)).flatten(1)
            return sums[:, margin // 2 : length - (margin - margin // 2)]

        overlap = added(window.square().expand(-1, frames)[None])
        return added(torch.fft.irfft(spectrum, self.n_fft, dim=-2) * window) / overlap


class _MelScale(nn.Module):
    """Mel bands [..., n_mels, frames] of a spectrogram."""

    fb: Tensor

    def __init__(self, sampling_rate: int, n_fft: int, f_min: float, f_max: float, n_mels: int) -> None:
        super().__init__()
        filters = mel_filters(sampling_rate, n_fft, n_mels, f_min, f_max)
        self.register_buffer("fb", torch.from_numpy(filters.T.copy()))

    def forward(self, spectrogram: Tensor) -> Tensor:
        return (spectrogram.transpose(-1, -2) @ self.fb).transpose(-1, -2)


class LogMel(nn.Module):
    """Waveform float32 [N, samples] to natural-log mel bands float32 [N, n_mels, samples // hop_length].

    Always float32: `.to(torch.bfloat16)` on a model that contains it only moves it between devices, because a window
    of eight bits precision would bury quiet bands. Needs more than (n_fft - hop_length) / 2 samples, the reflected
    margin.
    """

    def __init__(
        self,
        sampling_rate: int = 44_100,
        n_fft: int = 2048,
        win_length: int = 2048,
        hop_length: int = 512,
        f_min: float = 40,
        f_max: float = 16_000,
        n_mels: int = 128,
    ) -> None:
        super().__init__()
        self.spectrogram = _Spectrogram(n_fft, win_length, hop_length)
        self.mel_scale = _MelScale(sampling_rate, n_fft, f_min, f_max, n_mels)

    def forward(self, waveform: Tensor) -> Tensor:
        """Log-mel bands of the waveforms, with autocast disabled."""
        with torch.autocast(waveform.device.type, enabled=False):
            return self.mel_scale(self.spectrogram(waveform.float())).clamp(min=_FLOOR).log()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LogMel":
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if tensor.is_meta or moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)
