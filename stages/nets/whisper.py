"""faster-whisper, made reproducible and without network access."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel
from faster_whisper.transcribe import Segment, TranscriptionInfo, TranscriptionOptions

RATE_HZ = 16_000

# Tuned on sung loops: milder values leave some loops in place, stronger ones drop words that are sung.
_AGAINST_LOOPS: dict[str, Any] = {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3}


class Whisper(WhisperModel):
    """Whisper that decodes a looping window again, with a beam search that penalises repetition.

    The published remedy is sampling at rising temperatures (Radford et al. 2022, section 4.5), but CTranslate2 seeds
    its generator once per process: a song's text would depend on the songs before it. Call `transcribe` with
    temperature 0.
    """

    @classmethod
    def load(cls, folder: Path, device: str, compute_type: str) -> "Whisper":
        """Load the CTranslate2 model in a folder, on one thread.

        Raises:
            FileNotFoundError: the tokenizer is missing; faster-whisper would ask the hub for one.
        """
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(folder / "tokenizer.json")
        return cls(str(folder), device=device, compute_type=compute_type, cpu_threads=1, local_files_only=True)

    def speaks(self, language: str) -> bool:
        """Whether the model has a token for the language, an ISO 639-1 code."""
        return self.hf_tokenizer.token_to_id(f"<|{language}|>") is not None

    def generate_with_fallback(
        self, encoder_output: Any, prompt: list[int], tokenizer: Any, options: TranscriptionOptions
    ) -> tuple[Any, float, float, float]:
        """Decode one window: the result, its average log probability, temperature and compression ratio."""
        decoded = super().generate_with_fallback(encoder_output, prompt, tokenizer, options)
        *_, compression_ratio = decoded
        if compression_ratio <= options.compression_ratio_threshold:
            return decoded
        return super().generate_with_fallback(encoder_output, prompt, tokenizer, replace(options, **_AGAINST_LOOPS))

    def transcribe_together(
        self, audio: np.ndarray, windows: int, **options: Any
    ) -> tuple[Iterable[Segment], TranscriptionInfo]:
        """`transcribe` with up to `windows` windows of 30 s, split where nobody sings, decoded together.

        Looping windows are not decoded again.
        """
        pipeline = BatchedInferencePipeline(self)
        return pipeline.transcribe(audio, batch_size=windows, without_timestamps=False, **options)
