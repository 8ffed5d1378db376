"""Transcripts by OpenAI's own Whisper: a second engine, to use its checkpoints or to cross-check the first."""

from collections.abc import Mapping

import numpy as np
from faster_whisper.transcribe import Segment
from faster_whisper.vad import VadOptions

from stages import base
from stages.libraries import Library
from stages.nets.openai_whisper import OpenaiWhisper
from stages.transcript import TranscriptBase, WhisperParams


class TranscriptOpenaiParams(WhisperParams):
    """Which Whisper; for the rest see `WhisperParams`.

    Attributes:
        model: entry of the model store, one of OpenAI's checkpoints.
    """

    model: str = "whisper-large-v3-openai"


class TranscriptOpenai(TranscriptBase):
    """openai-whisper; a window that loops is sampled at rising temperatures, with the same seed for every song."""

    libraries = (Library("openai-whisper", module="whisper", package="openai-whisper", extra="whisper"),)
    Params = TranscriptOpenaiParams

    @property
    def models(self) -> tuple[str, ...]:
        """The Whisper to load."""
        return (self.params.model,)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load Whisper."""
        super().setup(weights)
        self._whisper = OpenaiWhisper.load(weights[self.params.model].path, self.device)

    def _speaks(self, language: str) -> bool:
        return self._whisper.speaks(language)

    def _transcribe(self, stem: np.ndarray, language: str | None) -> tuple[list[Segment], str | None]:
        return self._whisper.transcribe(
            stem,
            language,
            VadOptions(threshold=self.params.voice_threshold),
            self.params.language_windows,
            beam_size=self.params.beam_size,
            condition_on_previous_text=False,
            compression_ratio_threshold=self.params.max_compression_ratio,
            logprob_threshold=self.params.min_avg_logprob,
            no_speech_threshold=self.params.max_no_speech_prob,
        )
