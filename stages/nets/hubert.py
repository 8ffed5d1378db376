"""HuBERT encoders as feature extractors: MERT (music, 75 Hz) and mHuBERT (speech in 147 languages, 50 Hz).

Hsu et al., "HuBERT", 2021; Li et al., "MERT", ICLR 2024; Zanon Boito et al., "mHuBERT-147", 2024. MERT's released
configurations are HuBERT's under another name, so transformers' own `HubertModel` loads its weights and no code from
the model's repository runs.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

_EPSILON = 1e-7  # added to the variance, as in `Wav2Vec2FeatureExtractor`
_TOGETHER_S = 60  # seconds in a batch of chunks: 1.3 GB of activations in MERT 330M
_AS_HUBERT = {"feature_extractor_cqt": False, "deepnorm": False, "feat_proj_layer_norm": True}


class HubertStates:
    """The last layer's states for audio of any length.

    Attributes:
        input_rate_hz: sampling rate of the audio.
        rate_hz: rate of the states.
    """

    def __init__(self, model: HubertModel, input_rate_hz: int, chunk_s: float) -> None:
        """Wrap a model.

        Args:
            model: HuBERT of any size.
            input_rate_hz: sampling rate that it was trained at.
            chunk_s: length of the excerpts that it was trained on, and of the chunks that it gets here.
        """
        self._model = model.eval().requires_grad_(False)
        self._stride, self._reach = _stride_and_reach(model.config)
        self._chunk = round(chunk_s * input_rate_hz / self._stride)  # states
        self._batch = max(1, round(_TOGETHER_S / chunk_s))  # chunks
        self.input_rate_hz = input_rate_hz
        self.rate_hz = input_rate_hz / self._stride

    @classmethod
    def load(cls, folder: Path, input_rate_hz: int, chunk_s: float, device: str = "cpu") -> "HubertStates":
        """Load the encoder in a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`.

        Raises:
            ValueError: the configuration needs features that HuBERT lacks, or a weight is missing.
        """
        stored: dict[str, Any] = json.loads((folder / "config.json").read_text())
        for name, value in _AS_HUBERT.items():
            if stored.get(name, value) != value:
                raise ValueError(
                    f"{folder / 'config.json'}: {name} is {stored[name]}, which only the model's own code supports"
                )
        loaded: Any = HubertModel.from_pretrained(
            folder,
            config=HubertConfig(
                **{name: value for name, value in stored.items() if name not in ("model_type", "dtype")}
            ),
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
        model, report = loaded
        # `masked_spec_embed` is for masking, which only happens in pretraining.
        if missing := sorted({*report["missing_keys"]} - {"masked_spec_embed"}):
            raise ValueError(f"{folder}: {len(missing)} weights are missing, {missing[0]} the first of them")
        return cls(model.to(device), input_rate_hz, chunk_s)

    @property
    def dim(self) -> int:
        """Dimension of a state."""
        return int(self._model.config.hidden_size)

    @torch.inference_mode()
    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Mono audio [samples] to float32 states [ceil(samples / stride), dim].

        The whole track is normalised to zero mean and unit variance. All chunks have the same length: the last one
        starts earlier to make that so, and its overlap with the one before is dropped.
        """
        states = -(-len(audio) // self._stride)
        if not states:
            return np.zeros((0, self.dim), np.float32)
        chunk = min(self._chunk, states)
        padded = np.pad(_normalised(audio), (0, states * self._stride + self._reach - len(audio)))
        starts = [*range(0, states - chunk, chunk), states - chunk]
        cut = [padded[start * self._stride :][: chunk * self._stride + self._reach] for start in starts]
        chunks = torch.from_numpy(np.stack(cut))
        parts = [self._states(batch) for batch in chunks.split(self._batch)]
        made = np.concatenate(parts)
        kept = [part[start - begin :] for part, begin, start in zip(made, starts, range(0, states, chunk), strict=True)]
        return np.concatenate(kept)

    def _states(self, chunks: torch.Tensor) -> np.ndarray:
        """[batch, samples] to [batch, states, dim]."""
        states: torch.Tensor = self._model(chunks.to(self._model.device)).last_hidden_state
        return states.float().cpu().numpy()


def _stride_and_reach(config: Any) -> tuple[int, int]:
    """Samples from one state to the next, and how many samples more than that a state depends on."""
    stride, field = 1, 1
    for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * stride
        stride *= step
    return stride, field - stride


def _normalised(audio: np.ndarray) -> np.ndarray:
    centred = audio.astype(np.float32) - audio.mean(dtype=np.float64).astype(np.float32)
    return centred / np.float32(np.sqrt(np.square(centred).mean(dtype=np.float64) + _EPSILON))
