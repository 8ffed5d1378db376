"""Voices to embeddings: loads the export of an encoder trained with `songmill train speaker`."""

from pathlib import Path

import numpy as np
import torch

from stages.nets.omni_scale import SpeakerEncoder


class VoiceEncoder:
    """Log-mel bands and embeddings of segments.

    Attributes:
        rate_hz: sampling rate of the audio.
        dim: dimension of the embeddings.
    """

    def __init__(self, encoder: SpeakerEncoder) -> None:
        self._encoder = encoder.eval()
        self.rate_hz: int = encoder.config["sampling_rate"]
        self.dim: int = encoder.config["embedding_dim"]

    @classmethod
    def load(cls, folder: Path) -> "VoiceEncoder":
        """Load the encoder in a folder with `config.json` and safetensors.

        Raises:
            ValueError: config and weights do not match, or weights are not finite.
            OSError: no config, or no safetensors weights.
        """
        encoder, found = SpeakerEncoder.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        # diffusers only warns about these, and leaves a missing weight randomly initialised.
        if wrong := [f"{kind.replace('_', ' ')} {keys[0]}" for kind, keys in found.items() if keys]:
            raise ValueError(f"{folder}: config and weights do not match: {', '.join(wrong)}")
        if not all(weight.isfinite().all() for weight in encoder.state_dict().values()):
            raise ValueError(f"{folder}: weights hold NaN or infinity")
        return cls(encoder)

    @torch.inference_mode()
    def log_mel(self, voice: np.ndarray) -> np.ndarray:
        """Mono audio float32 [samples] at `rate_hz` to log-mel bands float32 [n_mels, frames]."""
        return self._encoder.log_mel(torch.from_numpy(np.ascontiguousarray(voice))[None])[0].numpy()

    @torch.inference_mode()
    def embed(self, voice: np.ndarray) -> np.ndarray:
        """Mono audio float32 [samples] at `rate_hz` to an embedding float32 [dim] of unit length."""
        return self._encoder(torch.from_numpy(self.log_mel(voice))[None])[0].numpy()
