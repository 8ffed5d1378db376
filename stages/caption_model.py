"""What captions by any model have in common: the prompt, the check of the answer, one repair, the fallback."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from schemas import columns
from stages import base, pcm
from stages.base import Track, Weights
from stages.caption import Caption
from stages.captioning.prompt import PROMPT, Message, Prompt
from stages.captioning.reply import ReplyError, parse

AUDIO_RATE_HZ = 16_000  # the input rate of Qwen2.5-Omni's audio encoder


class ModelParams(base.Params):
    """What a captioning model is asked.

    Attributes:
        listen: send the audio along; False has the measured facts alone put into words ("recaption").
        max_audio_s: of a longer song, only this many seconds from its middle are sent.
        prompt: the prompt file; its content is part of the fingerprint.
        temperature: 0 takes the likeliest words, which is as reproducible as the model is.
        max_tokens: upper limit for one answer.
    """

    listen: bool = True
    max_audio_s: float = Field(180.0, gt=0, le=300)
    prompt: Path = PROMPT
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(1024, ge=1)


class ModelCaption(base.Stage):
    """The six caption styles and the rap check, written by a model and validated.

    An answer that does not follow `stages.captioning.reply` is sent back once with what is wrong with it. If that does
    not help, the row gets the captions of `stages.caption` from the measured columns; `source` is then "measured" and
    `failure` says why. Otherwise `source` is the model's name.
    """

    name = "caption"
    type = columns.CAPTION
    reads = {**Caption.reads, "pcm": pcm.PCM}
    reads_if_present = Caption.reads_if_present

    @property
    def files(self) -> tuple[Path, ...]:
        """The prompt file."""
        return (self.params.prompt,)

    @property
    def model(self) -> str:
        """The model, the prompt's version and digest, and the stage's revision."""
        return f"{self.captioner}+prompt-{self._prompt.version}@{self.files_digest[:8]}+{self.name}@r{self.revision}"

    @property
    @abstractmethod
    def captioner(self) -> str:
        """The model's name."""

    def setup(self, weights: Mapping[str, Weights]) -> None:
        """Read the prompt.

        Raises:
            ValueError: the file is not a prompt.
        """
        super().setup(weights)
        self._prompt = Prompt.load(self.params.prompt)
        self._measured = Caption()

    def process(self, track: Track) -> dict[str, Any]:
        """Caption one row."""
        try:
            reply = self._ask(track)
        except Exception as error:
            if not self.is_about_the_song(error):
                raise
            measured: dict[str, Any] = self._measured.process(track)[self.column]
            return {self.column: measured | {"failure": f"{type(error).__name__}: {error}"[:500]}}
        return self.own(**reply, source=self.captioner)

    @abstractmethod
    def sound(self, audio: np.ndarray) -> Message:
        """Mono float32 [samples] at 16 kHz, as the content part of a message."""

    @abstractmethod
    def answer(self, messages: list[Message]) -> str:
        """The model's answer to a conversation."""

    def is_about_the_song(self, error: Exception) -> bool:
        """Whether an error calls for the fallback; any other error fails the row."""
        return isinstance(error, ReplyError)

    def _ask(self, track: Track) -> dict[str, Any]:
        measured = {name: track.get(name) for name in self.reads_if_present}
        sound = self.sound(_middle(track["pcm"], self.params.max_audio_s)) if self.params.listen else None
        messages = self._prompt.ask(measured, sound)
        answer = self.answer(messages)
        try:
            return parse(answer).model_dump()
        except ReplyError as error:
            return parse(self.answer([*messages, *self._prompt.again(answer, error)])).model_dump()


def _middle(column: Any, max_s: float) -> np.ndarray:
    audio = pcm.mono(column, AUDIO_RATE_HZ)
    spare = max(0, len(audio) - round(max_s * AUDIO_RATE_HZ))
    return audio[spare // 2 : len(audio) - (spare - spare // 2)]
