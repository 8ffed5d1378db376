"""Qwen2.5-Omni's thinker, which answers text and audio with text.

Xu et al., "Qwen2.5-Omni Technical Report" (arXiv 2503.20215); transformers' implementation. Only the thinker is loaded,
not the talker, which generates speech. transformers' processor needs torchvision even for audio alone, so the features
and the conversation's text are assembled here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    Qwen2_5OmniConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)

SAMPLE_RATE_HZ = 16_000
_LONGEST_S = 300
_MIN_SAMPLES = 400  # one window of the mel spectrogram
_AUDIO = "<|audio_bos|><|AUDIO|><|audio_eos|>"
_TURN_END = "<|im_end|>"

Message = dict[str, Any]


class QwenOmni:
    """Answers conversations whose messages contain text and audio."""

    def __init__(self, thinker: Any, tokenizer: Any, device: str) -> None:
        """The thinker and its tokenizer, moved to the device."""
        self._thinker = thinker.eval().to(device)
        self._tokenizer = tokenizer
        self._device = device
        bands = thinker.config.audio_config.num_mel_bins
        self._features = WhisperFeatureExtractor(feature_size=bands, chunk_length=_LONGEST_S)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "QwenOmni":
        """Load a checkpoint of the whole Qwen2.5-Omni in safetensors; bfloat16 on a GPU, float32 elsewhere.

        Raises:
            ValueError: the checkpoint lacks weights of the thinker.
        """
        config: Any = Qwen2_5OmniConfig.from_pretrained(folder, local_files_only=True).thinker_config
        loaded: Any = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        thinker, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{folder}: no weights for {', '.join(missing[:3])} and {len(missing) - 1} more")
        return cls(thinker, AutoTokenizer.from_pretrained(folder, local_files_only=True), device)

    @torch.inference_mode()
    def answer(self, messages: list[Message], max_tokens: int, temperature: float = 0.0) -> str:
        """The thinker's next turn.

        Args:
            messages: `role` and `content`: a text, or parts {"type": "text", "text": ...} and {"type": "audio",
                "audio": float32 [samples] at 16 kHz, at most five minutes}.
            max_tokens: upper limit for the answer.
            temperature: 0 takes the likeliest token every time.
        """
        sounds = [part["audio"] for message in messages for part in _parts(message) if part["type"] == "audio"]
        features = self._audio_features(sounds) if sounds else {}
        lengths = self._token_counts(features["feature_attention_mask"]) if features else []
        asked = self._tokenizer(_conversation(messages, lengths), return_tensors="pt", add_special_tokens=False)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        made = self._thinker.generate(
            **{name: value.to(self._device) for name, value in {**asked, **features}.items()},
            max_new_tokens=max_tokens,
            eos_token_id=self._tokenizer.convert_tokens_to_ids(_TURN_END),
            pad_token_id=self._tokenizer.pad_token_id,
            **sampling,
        )
        text: str = self._tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        return text

    def _audio_features(self, sounds: list[np.ndarray]) -> dict[str, torch.Tensor]:
        padded = [np.pad(sound, (0, max(0, _MIN_SAMPLES - len(sound)))) for sound in sounds]
        made = self._features(
            padded, sampling_rate=SAMPLE_RATE_HZ, return_attention_mask=True, padding="longest", return_tensors="pt"
        )
        features = made["input_features"].to(self._thinker.dtype)
        return {"input_features": features, "feature_attention_mask": made["attention_mask"]}

    def _token_counts(self, mask: torch.Tensor) -> list[int]:
        _, lengths = self._thinker.model.audio_tower._get_feat_extract_output_lengths(mask.sum(-1))
        counts: list[int] = lengths.tolist()
        return counts


def _parts(message: Message) -> list[Message]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _conversation(messages: list[Message], audio_tokens: list[int]) -> str:
    """Messages in Qwen's ChatML up to the start of the assistant's turn, each sound as its number of audio tokens."""
    remaining = iter(audio_tokens)
    turns = []
    for message in messages:
        pieces = [
            _AUDIO.replace("<|AUDIO|>", "<|AUDIO|>" * next(remaining)) if part["type"] == "audio" else part["text"]
            for part in _parts(message)
        ]
        turns.append(f"<|im_start|>{message['role']}\n{''.join(pieces)}{_TURN_END}\n")
    return "".join(turns) + "<|im_start|>assistant\n"
