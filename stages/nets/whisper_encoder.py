"""Whisper's encoder as a feature extractor: audio to one state (512-d for base) every 20 ms.

Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

_STATE_SAMPLES = 320  # a mel hop of 160, halved by the second convolution


class WhisperStates:
    """The encoder's states for audio of any length.

    Attributes:
        input_rate_hz: sampling rate of the audio.
        rate_hz: rate of the states.
    """

    def __init__(self, encoder: WhisperEncoder) -> None:
        self._encoder = encoder
        self._mel = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
        self.input_rate_hz: int = self._mel.sampling_rate
        self.rate_hz: float = self._mel.sampling_rate / _STATE_SAMPLES

    @classmethod
    def load(cls, folder: Path) -> "WhisperStates":
        """Load the encoder in a folder with `model.safetensors` and `config.json`."""
        with torch.device("meta"):
            encoder = WhisperEncoder(WhisperConfig(**json.loads((folder / "config.json").read_text())))
        weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        encoder.load_state_dict(weights, assign=True)
        return cls(encoder.eval())

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Mono audio [samples] at 16 kHz to float32 states [ceil(samples / 320), dim] at 50 Hz.

        The encoder processes consecutive windows of 30 s; the last one is padded with silence, whose states are
        dropped.
        """
        step = self._mel.n_samples
        windows = [audio[start : start + step] for start in range(0, len(audio), step)]
        states = [self._window(window)[: -(-len(window) // _STATE_SAMPLES)] for window in windows]
        return np.concatenate([np.zeros((0, self._encoder.config.d_model), np.float32), *states])

    @torch.inference_mode()
    def _window(self, audio: np.ndarray) -> np.ndarray:
        mel = self._mel(audio, sampling_rate=self.input_rate_hz, return_tensors="pt").input_features
        return self._encoder(mel).last_hidden_state[0].numpy()
