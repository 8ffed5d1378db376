"""Whisper's encoder as a feature extractor: audio to one 512-d state (base) every 20 ms.

Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

SAMPLE_RATE_HZ = 16_000
STATE_SAMPLES = 320
STATE_RATE_HZ = SAMPLE_RATE_HZ / STATE_SAMPLES
_WINDOW_SAMPLES = 30 * SAMPLE_RATE_HZ  # the only length that the encoder was trained on


class WhisperStates:
    """The states of a folder's encoder, for audio of any length."""

    def __init__(self, folder: Path) -> None:
        config = WhisperConfig(**json.loads((folder / "config.json").read_text()))
        self.dim: int = config.d_model
        self._mel = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        with torch.device("meta"):
            self._encoder = WhisperEncoder(config)
        weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        self._encoder.load_state_dict(weights, assign=True)
        self._encoder.eval()

    @torch.inference_mode()
    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Mono audio [samples] at 16 kHz to float32 states [ceil(samples / 320), dim] at 50 Hz.

        Windows of 30 s one after the other, the last one filled with silence whose states are cut off.
        """
        windows = [audio[start : start + _WINDOW_SAMPLES] for start in range(0, len(audio), _WINDOW_SAMPLES)]
        states = [self._window(window)[: -(-len(window) // STATE_SAMPLES)] for window in windows]
        return np.concatenate([np.zeros((0, self.dim), np.float32), *states])

    def _window(self, audio: np.ndarray) -> np.ndarray:
        mel = self._mel(audio, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        return self._encoder(mel).last_hidden_state[0].numpy()
