"""What is sung: Whisper on the separated vocals, with times, and with its hallucinations removed."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from faster_whisper.transcribe import Segment
from pydantic import Field

from schemas import columns
from stages import base, pcm
from stages.nets.whisper import RATE_HZ, Whisper
from stages.text.lyric_text import INSTRUMENTAL
from stages.transcription.hallucination import Guards
from stages.transcription.word_times import settle, voice_times


class WhisperParams(Guards):
    """How Whisper decodes, and when a segment counts as hallucinated (see `Guards`).

    Attributes:
        beam_size: hypotheses kept while decoding.
        voice_threshold: probability at which Silero VAD reports a voice. It was trained on speech: at its usual 0.5,
            half of the sung lines of a loud song are lost.
        min_avg_logprob: average log probability per token of a 30 s window. A window below it and above
            `max_no_speech_prob` is skipped.
        max_no_speech_prob: a window's probability of no speech; see `min_avg_logprob`.
        language_windows: windows of 30 s to decode before an uncertain language is decided by their majority.
    """

    beam_size: int = 5
    voice_threshold: float = 0.2
    min_avg_logprob: float = -1.0
    max_no_speech_prob: float = 0.6
    language_windows: int = 4


class TranscriptBase(base.Stage):
    """Whisper on the voiced parts of the vocal stem; each engine is an implementation of Whisper.

    `language` is the declared one where Whisper knows it, else the detected one; null without segments. `text` has one
    line per segment; it is "[inst]" for a track without vocals and empty where no segment was credible. `avg_logprob`
    and `no_speech_prob` are means over the tokens of all segments, null without any.
    """

    name = "transcript"
    revision = 2
    type = columns.TRANSCRIPT
    reads = {
        "vocal_stem": pcm.PCM,
        "vocals": pa.struct([columns.VOCALS.field("has_vocals")]),
        "language": pa.string(),
    }

    def process(self, track: base.Track) -> dict[str, Any]:
        """Transcribe the stem, unless nobody sings."""
        if not track["vocals"]["has_vocals"]:
            return self.own(text=INSTRUMENTAL, segments=[])
        stem = pcm.mono(track["vocal_stem"], RATE_HZ)
        found, language = self._transcribe(stem, self._declared(track["language"]))
        credible = [segment for segment in found if not self.params.drop(segment, stem)]
        segments = settle(credible, voice_times(stem, self.params.voice_threshold)) if credible else []
        return self.own(
            text="\n".join(segment.text.strip() for segment in segments),
            language=language if segments else None,
            avg_logprob=_token_mean(segments, [segment.avg_logprob for segment in segments]),
            no_speech_prob=_token_mean(segments, [segment.no_speech_prob for segment in segments]),
            segments=[_row(segment) for segment in segments],
        )

    def _declared(self, language: str | None) -> str | None:
        """The declared language, "pt" for "pt-BR", if the model knows it."""
        code = (language or "").strip().lower().replace("_", "-").split("-")[0]
        return code if code and self._speaks(code) else None

    @abstractmethod
    def _speaks(self, language: str) -> bool:
        """Whether Whisper has a token for the language, an ISO 639-1 code."""

    @abstractmethod
    def _transcribe(self, stem: np.ndarray, language: str | None) -> tuple[list[Segment], str | None]:
        """Segments with word times in a mono stem [samples] at 16 kHz, and their language, detected if it is None."""


class TranscriptParams(WhisperParams):
    """Which Whisper; for the rest see `WhisperParams`.

    Attributes:
        model: entry of the model store, a CTranslate2 Whisper.
        compute_type: CTranslate2's arithmetic; "int8" is the fastest on a CPU, "float16" on a GPU.
        batch_windows: windows of 30 s decoded together, to keep a GPU busy. With more than one, a window that loops is
            dropped instead of being decoded again.
    """

    model: str = "whisper-base"
    compute_type: str = "int8"
    batch_windows: int = Field(1, ge=1)


class Transcript(TranscriptBase):
    """faster-whisper; a window that loops is decoded again with a repetition penalty, unless windows are batched."""

    Params = TranscriptParams

    @property
    def models(self) -> tuple[str, ...]:
        """The Whisper to load."""
        return (self.params.model,)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load Whisper."""
        super().setup(weights)
        folder = weights[self.params.model].path
        self._whisper = Whisper.load(folder, self.device, self.params.compute_type)

    def _speaks(self, language: str) -> bool:
        return self._whisper.speaks(language)

    def _transcribe(self, stem: np.ndarray, language: str | None) -> tuple[list[Segment], str | None]:
        options: dict[str, Any] = {
            "language": language,
            "language_detection_segments": self.params.language_windows,
            "beam_size": self.params.beam_size,
            "temperature": 0.0,
            "condition_on_previous_text": False,  # a chorus in the prompt is an invitation to loop
            "compression_ratio_threshold": self.params.max_compression_ratio,
            "log_prob_threshold": self.params.min_avg_logprob,
            "no_speech_threshold": self.params.max_no_speech_prob,
            "word_timestamps": True,
            "vad_filter": True,
            "vad_parameters": {"threshold": self.params.voice_threshold},
        }
        if self.params.batch_windows == 1:
            segments, info = self._whisper.transcribe(stem, **options)
            return list(segments), info.language
        segments, info = self._whisper.transcribe_together(stem, self.params.batch_windows, **options)
        return [segment for segment in segments if not self._is_silence(segment)], info.language

    def _is_silence(self, segment: Segment) -> bool:
        """Whether `transcribe` would leave the segment out; the batched variant does not."""
        return (
            segment.no_speech_prob > self.params.max_no_speech_prob
            and segment.avg_logprob < self.params.min_avg_logprob
        )


def _token_mean(segments: Sequence[Segment], values: Sequence[float]) -> float | None:
    return float(np.average(values, weights=[len(segment.tokens) for segment in segments])) if segments else None


def _row(segment: Segment) -> dict[str, Any]:
    words = [{"start_s": word.start, "end_s": word.end, "text": word.word.strip()} for word in segment.words or ()]
    return {"start_s": segment.start, "end_s": segment.end, "text": segment.text.strip(), "words": words}
