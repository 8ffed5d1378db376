"""Resemblyzer's speaker encoder: who is singing, as a unit vector in 256 dimensions.

Wan, Wang, Papir, Lopez Moreno, "Generalized end-to-end loss for speaker verification", ICASSP 2018.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.signal.spectrum import magnitudes, mel_bands

RATE_HZ = 16_000
DIM = 256
PARTIAL = 160  # frames of a partial utterance, 1.6 s
_HOP = RATE_HZ // 100
_WINDOW = RATE_HZ // 40
_MELS = 40
_STEP = 77  # frames from one partial utterance to the next: 1.3 of them a second
_MIN_COVERAGE = 0.75  # of the last partial utterance; less is dropped
_TARGET_DBFS = -30.0


class SpeakerEncoder(nn.Module):
    """An LSTM whose projected last state is the speaker's embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_MELS, DIM, num_layers=3, batch_first=True)
        self.projection = nn.Linear(DIM, DIM)

    @classmethod
    def load(cls, folder: Path) -> "SpeakerEncoder":
        """The pretrained encoder from a folder with `model.safetensors`."""
        model = cls()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()

    def forward(self, mel: Tensor) -> Tensor:
        """Mel spectrograms [batch, frames, 40] to non-negative embeddings [batch, DIM] of unit length."""
        _, (hidden, _) = self.lstm(mel)
        return F.normalize(F.relu(self.projection(hidden[-1])), dim=1)

    @torch.inference_mode()
    def embed(self, voice: np.ndarray) -> np.ndarray:
        """The embedding float32 [DIM] of one utterance: mono audio [samples] at RATE_HZ without long silences.

        It is the mean over overlapping partial utterances, rescaled to unit length.
        """
        starts = _partial_starts(len(voice))
        missing = (starts[-1] + PARTIAL) * _HOP - len(voice)
        padded = np.pad(_loud_enough(voice), (0, max(0, missing)))
        mel = mel_bands(magnitudes(padded, _WINDOW, _HOP) ** 2, RATE_HZ, _MELS).T
        partials = torch.from_numpy(np.stack([mel[start : start + PARTIAL] for start in starts]))
        return F.normalize(self(partials).mean(0), dim=0).numpy()


def _partial_starts(samples: int) -> list[int]:
    """First frames of the partial utterances; there is always at least one."""
    frames = -(-(samples + 1) // _HOP)
    starts = list(range(0, max(1, frames - PARTIAL + _STEP + 1), _STEP))
    covered = samples / _HOP - starts[-1]
    return starts[:-1] if covered < _MIN_COVERAGE * PARTIAL and len(starts) > 1 else starts


def _loud_enough(voice: np.ndarray) -> np.ndarray:
    """The voice, amplified to an RMS of -30 dBFS if it is quieter, as in training."""
    rms = float(np.sqrt(np.mean(np.square(voice, dtype=np.float64))))
    gain = 10 ** (_TARGET_DBFS / 20) / max(rms, 1e-9)
    return voice * np.float32(max(1.0, gain))
