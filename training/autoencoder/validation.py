"""Reconstruction of fixed crops of held-out songs, in numbers and in images."""

from collections.abc import Mapping
from math import log

import numpy as np
import torch
from torch import Tensor

from training.autoencoder.config import CropsConfig
from training.autoencoder.crops import read_crops, spread, whole_frames
from training.autoencoder.model import SpectrogramAutoencoder, StereoMel, as_latents
from training.data.recordings import RATE_HZ, AudioSource

_DECIBELS = 7 * 20 / log(10)  # of 1 on the codec's scale: 7 natural logarithms of a magnitude
_SHOWN = 4
_DARKEST, _BRIGHTEST = -0.7, 0.7  # of the scale, in pictures; music hardly leaves it


class HeldOut:
    """Spectrograms of fixed crops of held-out songs, to validate on.

    Args:
        audio: recordings to read from.
        songs: indices of the held-out songs.
        config: length and number of the crops.
        mel: computes spectrograms.
    """

    def __init__(self, audio: AudioSource, songs: list[int], config: CropsConfig, mel: StereoMel) -> None:
        length = whole_frames(config.validation_s)
        samples = [audio.recordings[song].samples for song in songs]
        places = spread(songs, samples, length, config.validation_excerpts) if songs else []
        # One at a time, and kept on the CPU: they are few.
        self._spectrograms = [mel(read_crops(audio, [place], length).waveforms) for place in places]
        self.names = [
            f"{audio.recordings[place.song].track_id[:8]} at {place.start / RATE_HZ:.0f} s" for place in places
        ]

    @torch.no_grad()
    def figures(self, model: SpectrogramAutoencoder, device: torch.device) -> dict[str, float]:
        """Mean reconstruction errors and latent statistics; empty without held-out songs.

        `validation/loss` is the mean squared error on the codec's scale, whatever the training loss is;
        `validation/baseline` is the error of predicting each band's mean.
        """
        if not self._spectrograms:
            return {}
        squared, absolute, latents = [], [], []
        for spectrogram in self._spectrograms:
            music = spectrogram.to(device)
            code = model.encode(music)
            error = model.decode(code) - music
            squared.append(error.square().mean().item())
            absolute.append(error.abs().mean().item())
            latents.append(as_latents(code).cpu())
        spread_out = torch.cat(latents, dim=-1)
        return {
            "validation/loss": float(np.mean(squared)),
            "validation/baseline": self._baseline,
            "validation/mel_distance_db": float(np.mean(absolute)) * _DECIBELS,
            "validation/latent_mean": spread_out.mean().item(),
            "validation/latent_std": spread_out.std().item(),
        }

    @torch.no_grad()
    def pictures(self, model: SpectrogramAutoencoder, device: torch.device) -> Mapping[str, np.ndarray]:
        """The first crops with their reconstructions below: left channel, uint8 [2 * 128 + 1, frames]."""
        shown = zip(self.names[:_SHOWN], self._spectrograms[:_SHOWN], strict=True)
        return {name: _picture(music, model(music.to(device)).cpu()) for name, music in shown}

    @property
    def _baseline(self) -> float:
        music = torch.cat(self._spectrograms, dim=-1)
        return (music - music.mean(dim=(0, 1, 3), keepdim=True)).square().mean().item()


def _picture(music: Tensor, made: Tensor) -> np.ndarray:
    seam = torch.full((1, music.shape[-1]), _BRIGHTEST)
    stacked = torch.cat([music[0, 0].flip(0), seam, made[0, 0].float().flip(0)])  # high notes on top
    brightness = (stacked - _DARKEST) / (_BRIGHTEST - _DARKEST)
    return (brightness.clamp(0, 1) * 255).byte().numpy()
