"""OpenAI's own Whisper: its checkpoints (`large-v3.pt`) and decoder, made reproducible and given only voiced audio."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_whisper.transcribe import Segment, Word, restore_speech_timestamps
from faster_whisper.vad import VadOptions, get_speech_timestamps

from stages.nets.whisper import RATE_HZ

# Radford et al. 2022, section 4.5: where beam search fails, the window is sampled at rising temperatures.
_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_SURE_LANGUAGE = 0.5  # probability at which one window of 30 s decides, as it does in faster-whisper


class OpenaiWhisper:
    """A Whisper in PyTorch."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "OpenaiWhisper":
        """Load the checkpoint (`*.pt`) in a folder: a dictionary of `dims` and `model_state_dict`.

        The attention heads used for word times are known for files with a published name; otherwise all heads in the
        upper half of the decoder are used.

        Raises:
            ImportError: the library is not installed.
            ValueError: the folder does not hold exactly one checkpoint.
        """
        import whisper

        files = sorted(folder.glob("*.pt"))
        if len(files) != 1:
            raise ValueError(f"{folder}: expected one Whisper checkpoint (*.pt), found {len(files)}")
        model = whisper.load_model(str(files[0]), device)
        if heads := whisper._ALIGNMENT_HEADS.get(files[0].stem):  # `load_model` sets them for names, not for paths
            model.set_alignment_heads(heads)
        return cls(model)

    def speaks(self, language: str) -> bool:
        """Whether the model has a token for the language, an ISO 639-1 code."""
        return language in self._tokenizer.all_language_codes

    @torch.inference_mode()
    def transcribe(
        self, audio: np.ndarray, language: str | None, voice: VadOptions, language_windows: int, **options: Any
    ) -> tuple[list[Segment], str | None]:
        """Segments with word times in mono audio [samples] at 16 kHz, and their language, None if there is no voice.

        Args:
            audio: float32 samples.
            language: ISO 639-1 code; None to detect it in up to `language_windows` windows of 30 s.
            voice: options of Silero VAD; only the voiced audio is transcribed.
            language_windows: at least 1.
            **options: of `whisper.transcribe`.
        """
        import whisper

        if not (spans := get_speech_timestamps(audio, voice)):
            return [], None
        voiced = np.concatenate([audio[span["start"] : span["end"]] for span in spans])
        language = language or self._language(voiced, language_windows)
        with torch.random.fork_rng(self._cuda()):
            torch.manual_seed(0)  # a song's text must not depend on the songs before it
            made = whisper.transcribe(
                self._model,
                voiced,
                language=language,
                temperature=_TEMPERATURES,
                word_timestamps=True,
                fp16=self._model.device.type != "cpu",
                **options,
            )
        segments = [_segment(segment) for segment in made["segments"]]
        return list(restore_speech_timestamps(segments, spans, RATE_HZ)), language

    @property
    def _tokenizer(self) -> Any:
        from whisper.tokenizer import get_tokenizer

        return get_tokenizer(self._model.is_multilingual, num_languages=self._model.num_languages)

    def _cuda(self) -> list[torch.device]:
        return [self._model.device] if self._model.device.type == "cuda" else []

    def _language(self, audio: np.ndarray, windows: int) -> str:
        """The language of the first window with a confident detection, else that of most windows."""
        import whisper

        if not self._model.is_multilingual:
            return "en"
        length = whisper.audio.N_SAMPLES
        votes: dict[str, int] = {}
        for start in range(0, min(len(audio), windows * length), length):
            window = whisper.pad_or_trim(audio[start : start + length])
            mel = whisper.log_mel_spectrogram(window, self._model.dims.n_mels, device=self._model.device)
            _, probabilities = self._model.detect_language(mel)
            best = max(probabilities, key=probabilities.get)
            if probabilities[best] > _SURE_LANGUAGE:
                return best
            votes[best] = votes.get(best, 0) + 1
        return max(votes, key=lambda language: votes[language])


def _segment(made: dict[str, Any]) -> Segment:
    words = [Word(word["start"], word["end"], word["word"], word["probability"]) for word in made["words"]]
    values = {name: made[name] for name in Segment.__dataclass_fields__ if name != "words"}
    return Segment(words=words, **values)
