"""Captions by a model behind an OpenAI-compatible endpoint: vLLM with Qwen2.5-Omni, llama.cpp, or a vendor's."""

import base64
import io
import os
import time
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from schemas import columns
from stages import base, pcm
from stages.base import Track, Weights
from stages.caption import Caption
from stages.caption_prompt import PROMPT, Message, Prompt
from stages.caption_reply import ReplyError, json_schema, parse

AUDIO_RATE_HZ = 16_000  # what Qwen2.5-Omni's audio encoder hears


class Params(base.Params):
    """Which model is asked, how, and how often. Where it is reached and how fast is no part of the fingerprint.

    Attributes:
        base_url: the endpoint, up to and with its "/v1".
        model: name of the model there.
        api_key_env: environment variable with the key; local servers want none, then it may be unset.
        listen: send the audio; False has the measured facts put into words and nothing heard ("recaption").
        max_audio_s: a longer song is heard in its middle, so many seconds of it.
        form: how the server holds the model to JSON: by its schema, by syntax alone, or not at all.
        prompt: file of the prompt; its content is part of the fingerprint.
        temperature: 0 gives the likeliest words, as far as a server repeats itself.
        max_tokens: of an answer.
        timeout_s: for one answer.
        max_retries: repetitions after a refused connection, a timeout, 408, 409, 429 and 5xx, with growing pauses, or
            those the server asks for.
        concurrency: requests open at a time, over the whole cluster.
        requests_per_minute: limit of requests, over the whole cluster; repetitions are not counted.
    """

    base_url: str = Field("http://127.0.0.1:8000/v1", exclude=True)
    model: str = "Qwen/Qwen2.5-Omni-7B"
    api_key_env: str = Field("OPENAI_API_KEY", exclude=True)
    listen: bool = True
    max_audio_s: float = Field(180.0, gt=0)
    form: Literal["json_schema", "json_object", "none"] = "json_schema"
    prompt: Path = PROMPT
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(1024, ge=1)
    timeout_s: float = Field(120.0, gt=0, exclude=True)
    max_retries: int = Field(6, ge=0, exclude=True)
    concurrency: int = Field(4, ge=1, exclude=True)
    requests_per_minute: float | None = Field(None, gt=0, exclude=True)


class CaptionEndpoint(base.Stage):
    """The six caption styles and the rap check, asked of a model and checked.

    An answer that has not the form of `stages.caption_reply` is sent back once with what is wrong with it. Where that
    does not help, or the server goes on failing on this song, the row gets the captions of `stages.caption` from the
    measured columns: `source` is "measured" then and `failure` says why. Otherwise `source` is the model's name.

    A server that cannot be reached at the start, or refuses the key, stops the run before any work. One that does so
    later fails the row: nothing was learnt about the song.
    """

    name = "caption"
    type = columns.CAPTION
    reads = {**Caption.reads, "pcm": pcm.PCM}
    reads_if_present = Caption.reads_if_present
    Params = Params

    @property
    def files(self) -> tuple[Path, ...]:
        """The prompt."""
        return (self.params.prompt,)

    @property
    def concurrency(self) -> int:
        """Requests open at a time."""
        return int(self.params.concurrency)

    @property
    def model(self) -> str:
        """The model's name, the prompt's version and digest, and the stage's revision."""
        return f"{self.params.model}+prompt-{self._prompt.version}@{self.files_digest[:8]}+{super().model}"

    def setup(self, weights: Mapping[str, Weights]) -> None:
        """Connect; RuntimeError when the library is missing, the server does not answer or refuses the key."""
        super().setup(weights)
        try:
            import openai
        except ImportError as error:
            raise RuntimeError("the client is not installed: pip install songmill[captions]") from error
        self._prompt = Prompt.load(self.params.prompt)
        self._measured = Caption()
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=self.params.base_url,
            api_key=os.environ.get(self.params.api_key_env) or "none",
            timeout=self.params.timeout_s,
            max_retries=self.params.max_retries,
        )
        self._next = 0.0
        self._check()

    def process(self, track: Track) -> dict[str, Any]:
        """Caption one row."""
        try:
            reply = self._ask(track)
        except (ReplyError, self._openai.APIError) as error:
            if self._is_about_the_server(error):
                raise
            measured: dict[str, Any] = self._measured.process(track)[self.column]
            return {self.column: measured | {"failure": f"{type(error).__name__}: {error}"[:500]}}
        return self.own(**reply, source=self.params.model)

    def _is_about_the_server(self, error: Exception) -> bool:
        """Whether it would have happened with any song."""
        o = self._openai
        refused = (o.AuthenticationError, o.PermissionDeniedError, o.NotFoundError)
        gone = isinstance(error, o.APIConnectionError) and not isinstance(error, o.APITimeoutError)
        return gone or isinstance(error, refused)

    def _ask(self, track: Track) -> dict[str, Any]:
        measured = {name: track.get(name) for name in self.reads_if_present}
        audio = _sound(track["pcm"], self.params.max_audio_s) if self.params.listen else None
        messages = self._prompt.ask(measured, audio)
        answer = self._answer(messages)
        try:
            return parse(answer).model_dump()
        except ReplyError as error:
            return parse(self._answer([*messages, *self._prompt.again(answer, error)])).model_dump()

    def _answer(self, messages: list[Message]) -> str:
        self._wait()
        made = self._client.chat.completions.create(
            model=self.params.model,
            messages=messages,  # type: ignore[arg-type]
            temperature=self.params.temperature,
            max_tokens=self.params.max_tokens,
            **self._form(),
        )
        return (made.choices[0].message.content if made.choices else None) or ""

    def _form(self) -> dict[str, Any]:
        if self.params.form == "none":
            return {}
        if self.params.form == "json_object":
            return {"response_format": {"type": "json_object"}}
        schema = {"name": "caption", "schema": json_schema(), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    def _wait(self) -> None:
        """Keep this replica's share of the rate; all replicas together stay below the limit."""
        if self.params.requests_per_minute:
            time.sleep(max(0.0, self._next - time.monotonic()))
            self._next = time.monotonic() + 60.0 * self.params.concurrency / self.params.requests_per_minute

    def _check(self) -> None:
        openai = self._openai
        try:
            self._client.with_options(max_retries=1).models.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            told = f"{self.params.base_url} refused the key in {self.params.api_key_env}: {error}"
            raise RuntimeError(told) from error
        except openai.APIConnectionError as error:
            told = (
                f"no answer from {self.params.base_url}: start a server there (vllm serve {self.params.model}), give "
                "--set caption.base_url=URL, or take captions of the measured facts with --set caption.engine=template"
            )
            raise RuntimeError(told) from error
        except openai.APIStatusError:
            pass  # not every server lists its models


def _sound(column: Any, max_s: float) -> Message:
    """The middle of a song as the content part of a message: base64 of a WAV, mono, 16 bits at 16 kHz."""
    audio = pcm.mono(column, AUDIO_RATE_HZ)
    spare = max(0, len(audio) - round(max_s * AUDIO_RATE_HZ))
    heard = np.clip(audio[spare // 2 : len(audio) - (spare - spare // 2)], -1, 1)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(AUDIO_RATE_HZ)
        file.writeframes(np.round(heard * 32_767).astype("<i2").tobytes())
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
