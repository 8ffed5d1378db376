"""Captions by a model behind an OpenAI-compatible endpoint: vLLM with Qwen2.5-Omni, llama.cpp, or a vendor's."""

import base64
import io
import os
import time
import wave
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from stages.base import Weights
from stages.caption_model import AUDIO_RATE_HZ, ModelCaption, ModelParams
from stages.captioning.prompt import Message
from stages.captioning.reply import json_schema
from stages.libraries import Library


class Params(ModelParams):
    """Which model is asked, and how often. Where it is reached and how fast is no part of the fingerprint.

    Attributes:
        base_url: the endpoint, up to and with its "/v1".
        model: name of the model there.
        api_key_env: environment variable with the key; local servers want none, then it may be unset.
        form: how the server holds the model to JSON: by its schema, by syntax alone, or not at all.
        timeout_s: for one answer.
        max_retries: repetitions after a refused connection, a timeout, 408, 409, 429 and 5xx, with growing pauses, or
            those the server asks for.
        concurrency: requests open at a time, over the whole cluster.
        requests_per_minute: limit of requests, over the whole cluster; repetitions are not counted.
    """

    base_url: str = Field("http://127.0.0.1:8000/v1", exclude=True)
    model: str = "Qwen/Qwen2.5-Omni-7B"
    api_key_env: str = Field("OPENAI_API_KEY", exclude=True)
    form: Literal["json_schema", "json_object", "none"] = "json_schema"
    timeout_s: float = Field(120.0, gt=0, exclude=True)
    max_retries: int = Field(6, ge=0, exclude=True)
    concurrency: int = Field(4, ge=1, exclude=True)
    requests_per_minute: float | None = Field(None, gt=0, exclude=True)


class CaptionEndpoint(ModelCaption):
    """Captions asked of a server, see `ModelCaption`; also one that goes on failing on a song gives it the fallback.

    A server that cannot be reached at the start, or refuses the key, stops the run before any work. One that does so
    later fails the row: nothing was learnt about the song.
    """

    libraries = (Library("the client of OpenAI's API", module="openai", package="openai", extra="captions"),)
    Params = Params

    @property
    def concurrency(self) -> int:
        """Requests open at a time."""
        return int(self.params.concurrency)

    @property
    def captioner(self) -> str:
        """The model's name at the server."""
        return str(self.params.model)

    def setup(self, weights: Mapping[str, Weights]) -> None:
        """Connect; RuntimeError when the server does not answer or refuses the key."""
        super().setup(weights)
        import openai

        self._openai = openai
        self._client = openai.OpenAI(
            base_url=self.params.base_url,
            api_key=os.environ.get(self.params.api_key_env) or "none",
            timeout=self.params.timeout_s,
            max_retries=self.params.max_retries,
        )
        self._next = 0.0
        self._check()

    def sound(self, audio: np.ndarray) -> Message:
        """Base64 of a WAV, mono, 16 bits."""
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(AUDIO_RATE_HZ)
            file.writeframes(np.round(np.clip(audio, -1, 1) * 32_767).astype("<i2").tobytes())
        data = base64.b64encode(buffer.getvalue()).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}

    def answer(self, messages: list[Message]) -> str:
        """Ask the server, in time."""
        self._wait()
        made = self._client.chat.completions.create(
            model=self.params.model,
            messages=messages,  # type: ignore[arg-type]
            temperature=self.params.temperature,
            max_tokens=self.params.max_tokens,
            **self._form(),
        )
        return (made.choices[0].message.content if made.choices else None) or ""

    def is_about_the_song(self, error: Exception) -> bool:
        """Errors of the API are, but for those that any song would have met."""
        o = self._openai
        refused = (o.AuthenticationError, o.PermissionDeniedError, o.NotFoundError)
        gone = isinstance(error, o.APIConnectionError) and not isinstance(error, o.APITimeoutError)
        of_the_api = isinstance(error, o.APIError) and not (gone or isinstance(error, refused))
        return of_the_api or super().is_about_the_song(error)

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
