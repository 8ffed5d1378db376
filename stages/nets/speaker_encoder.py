"""Voices to directions: the encoder that `songmill train speaker` makes, as its export is loaded."""

from pathlib import Path

import numpy as np
import torch

from stages.nets.omni_scale import SpeakerEncoder


class VoiceEncoder:
    """Log-mel bands and embeddings of segments.

    Attributes:
        rate_hz: of the audio.
        dim: of the embeddings.
    """

    def __init__(self, encoder: SpeakerEncoder) -> None:
        self._encoder = encoder.eval()
        self.rate_hz: int = encoder.config["sampling_rate"]
        self.dim: int = encoder.config["embedding_dim"]

    @classmethod
    def load(cls, folder: Path) -> "VoiceEncoder":
        """The encoder in a folder with `config.json` and safetensors.

        Raises:
            ValueError: config and weights do not fit together, or weights are not finite.
            OSError: no config, or no safetensors weights.
        """
        encoder, found = SpeakerEncoder.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        # diffusers only warns of these, and leaves random numbers where a weight is missing.
        if wrong := [f"{kind.replace('_', ' ')} {keys[0]}" for kind, keys in found.items() if keys]:
            raise ValueError(f"{folder}: config and weights do not fit together: {', '.join(wrong)}")
        if not all(weight.isfinite().all() for weight in encoder.state_dict().values()):
            raise ValueError(f"{folder}: weights hold NaN or infinity")
        return cls(encoder)

    @torch.inference_mode()
    def log_mel(self, voice: np.ndarray) -> np.ndarray:
        """Mono audio float32 [samples] to log-mel bands float32 [n_mels, frames]."""
        return self._encoder.log_mel(torch.from_numpy(np.ascontiguousarray(voice))[None])[0].numpy()

    @torch.inference_mode()
    def embed(self, voice: np.ndarray) -> np.ndarray:
        """Mono audio float32 [samples] to an embedding float32 [dim] of length 1."""
        return self._encoder(torch.from_numpy(self.log_mel(voice))[None])[0].numpy()
