"""A vocoder without weights: log-mel bands to a waveform by optimisation, for codecs whose vocoder nobody trained.

Magnitudes under the bands by the multiplicative updates of Lee and Seung, "Algorithms for non-negative matrix
factorization" (2000), and phases that fit them by the accelerated iteration of Perraudin, Balazs and Sondergaard, "A
fast Griffin-Lim algorithm" (2013).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from stages.nets.codec.mel import SMOOTHING, LogMel

_UPDATES = 30  # of the magnitudes
_SEED = 0  # of the phases it begins with
_TINY = 1e-12


class GriffinLim(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Mono vocoder with the interface of `ADaMoSHiFiGANV1` and nothing to load: its folder holds a config alone.

    Each frame's phases hang on those of its neighbours, these on theirs, and so on: no context makes two windows agree
    on them. Where `MusicDCAE` passes from one window to the next, every 24 s, it therefore fades between two phases,
    and the sound is up to 5 dB softer for a tenth of a second. The whole song at once would have no such place, but
    takes more than 1 GB for three minutes.

    Args:
        iterations: of the phases.
        momentum: of the iteration, 0 is Griffin and Lim's own of 1984.
        sampling_rate: of this and all that follows `LogMel` tells.
    """

    reach = 16  # mel frames: enough for the edge of a window, which is reflected, to be out of hearing

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
        for module in self.mel_transform.modules():  # what is computed from the config need not be stored beside it
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)

    @contextmanager
    def folded_weights(self) -> Iterator[None]:
        """There are no weights."""
        yield

    def encode(self, waveform: Tensor) -> Tensor:
        """Mono waveforms [N, samples] to log-mel bands float32 [N, n_mels, samples // hop_length]."""
        return self.mel_transform(waveform)

    @torch.no_grad()
    def decode(self, mel: Tensor) -> Tensor:
        """Log-mel bands [N, n_mels, frames] to mono waveforms float32 [N, frames * hop_length].

        The same bands give the same waveform, whatever lies beside them in the batch: equal channels stay equal.
        At least two frames, more than the analysis reflects at an edge.
        """
        return self._waveform(self._magnitudes(mel.float().exp()))

    def forward(self, mel: Tensor) -> Tensor:
        """As `decode`."""
        return self.decode(mel)

    def _magnitudes(self, bands: Tensor) -> Tensor:
        """Magnitudes [N, bins, frames] whose bands are nearest in divergence: every band counts relative to itself."""
        filters = self.mel_transform.mel_scale.fb
        seen = filters.sum(1, keepdim=True).clamp(min=_TINY)
        magnitudes = filters @ bands / seen
        for _ in range(_UPDATES):
            magnitudes = magnitudes * (filters @ (bands / (filters.T @ magnitudes).clamp(min=_TINY))) / seen
        return (magnitudes.square() - SMOOTHING).clamp(min=0).sqrt()

    def _waveform(self, magnitudes: Tensor) -> Tensor:
        """The waveform [N, frames * hop] whose spectrogram comes near magnitudes [N, bins, frames]."""
        generator = torch.Generator().manual_seed(_SEED)
        turns = torch.rand(magnitudes.shape[:0:-1], generator=generator).T.to(magnitudes.device)
        spectrum = torch.polar(magnitudes, (2 * torch.pi * turns).expand_as(magnitudes))
        before = torch.zeros_like(spectrum)
        stft = self.mel_transform.spectrogram
        for _ in range(self.iterations):
            heard = stft.spectrum(stft.inverse(spectrum))
            ahead = heard + self.momentum * (heard - before)
            before = heard
            spectrum = ahead * (magnitudes / ahead.abs().clamp(min=_TINY))
        return stft.inverse(spectrum)
