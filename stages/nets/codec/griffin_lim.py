"""A vocoder without weights: log-mel bands to a waveform by optimisation, for codecs without a trained vocoder.

Magnitudes are recovered from the bands by the multiplicative updates of Lee and Seung, "Algorithms for non-negative
matrix factorization" (2000), and phases by the accelerated iteration of Perraudin, Balazs and Sondergaard, "A fast
Griffin-Lim algorithm" (2013).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from stages.nets.codec.mel import SMOOTHING, LogMel

_UPDATES = 30  # of the magnitudes
_SEED = 0  # of the initial phases
_TINY = 1e-12


class GriffinLim(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Mono vocoder with the interface of `ADaMoSHiFiGANV1` and no weights: its folder holds only a config.

    Each frame's phases depend on those of its neighbours, theirs on their neighbours', and so on: no amount of context
    makes two windows agree. At window boundaries, every 24 s, `MusicDCAE` therefore fades between two phases, and the
    sound is up to 5 dB softer for a tenth of a second. Rendering the whole song at once would avoid that, but takes
    more than 1 GB for three minutes.

    Args:
        iterations: number of phase updates.
        momentum: acceleration of the updates; 0 is the original algorithm of Griffin and Lim (1984).
        sampling_rate: this and the arguments that follow are those of `LogMel`.
    """

    reach = 16  # mel frames: enough for the reflected edge of a window to be inaudible

    @register_to_config
    def __init__(
        self,
        iterations: int = 32,
        momentum: float = 0.99,
        sampling_rate: int = 44_100,
        n_fft: int = 2048,
        win_length: int = 2048,
        hop_length: int = 512,
        f_min: float = 40,
        f_max: float = 16_000,
        n_mels: int = 128,
    ) -> None:
        super().__init__()
        self.iterations, self.momentum = iterations, momentum
        self.mel_transform = LogMel(sampling_rate, n_fft, win_length, hop_length, f_min, f_max, n_mels)
        for module in self.mel_transform.modules():  # buffers computed from the config need not be saved with it
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)

    @contextmanager
    def folded_weights(self) -> Iterator[None]:
        """Does nothing: there are no weights."""
        yield

    def encode(self, waveform: Tensor) -> Tensor:
        """Mono waveforms [N, samples] to log-mel bands float32 [N, n_mels, samples // hop_length]."""
        return self.mel_transform(waveform)

    @torch.no_grad()
    def decode(self, mel: Tensor) -> Tensor:
        """Log-mel bands [N, n_mels, frames] to mono waveforms float32 [N, frames * hop_length].

        The same bands give the same waveform, whatever else is in the batch: equal channels stay equal. Needs at least
        two frames, more than the analysis reflects at an edge.
        """
        return self._waveform(self._magnitudes(mel.float().exp()))

    def forward(self, mel: Tensor) -> Tensor:
        """As `decode`."""
        return self.decode(mel)

    def _magnitudes(self, bands: Tensor) -> Tensor:
        """Magnitudes [N, bins, frames] whose bands are nearest in KL divergence to `bands` [N, n_mels, frames]."""
        filters = self.mel_transform.mel_scale.fb
        seen = filters.sum(1, keepdim=True).clamp(min=_TINY)
        magnitudes = filters @ bands / seen
        for _ in range(_UPDATES):
            magnitudes = magnitudes * (filters @ (bands / (filters.T @ magnitudes).clamp(min=_TINY))) / seen
        return (magnitudes.square() - SMOOTHING).clamp(min=0).sqrt()

    def _waveform(self, magnitudes: Tensor) -> Tensor:
        """A waveform [N, frames * hop] whose spectrogram approximates magnitudes [N, bins, frames]."""
        generator = torch.Generator().manual_seed(_SEED)
        turns = torch.rand(magnitudes.shape[:0:-1], generator=generator).T.to(magnitudes.device)
        spectrum = torch.polar(magnitudes, (2 * torch.pi * turns).expand_as(magnitudes))
        before = torch.zeros_like(spectrum)
        stft = self.mel_transform.spectrogram
        for _ in range(self.iterations):
            consistent = stft.spectrum(stft.inverse(spectrum))
            ahead = consistent + self.momentum * (consistent - before)
            before = consistent
            spectrum = ahead * (magnitudes / ahead.abs().clamp(min=_TINY))
        return stft.inverse(spectrum)
