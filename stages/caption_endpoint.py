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


class CaptionEndpointParams(ModelParams):
    """Which model is asked, and how often. The server's address and speed are not part of the fingerprint.

    Attributes:
        base_url: the endpoint, including its "/v1".
        model: the model's name on that server.
        api_key_env: environment variable that holds the key; may be unset for local servers, which need none.
        form: how the server constrains the model to JSON: by schema, by syntax alone, or not at all.
        timeout_s: seconds to wait for one answer.
        max_retries: retries after a refused connection, a timeout, 408, 409, 429 or 5xx, with growing pauses or those
            that the server asks for.
        concurrency: requests open at once, over the whole cluster.
        requests_per_minute: limit over the whole cluster; retries are not counted.
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
    """Captions from a server, see `ModelCaption`; a song on which the server keeps failing gets the fallback too.

    A server that cannot be reached at the start, or refuses the key, stops the run before any work is done. If that
    happens later the row fails, because it says nothing about the song.
    """

    libraries = (Library("the client of OpenAI's API", module="openai", package="openai", extra="captions"),)
    Params = CaptionEndpointParams

    @property
    def concurrency(self) -> int:
        """Requests open at once."""
        return int(self.params.concurrency)

    @property
    def captioner(self) -> str:
        """The model's name on the server."""
        return str(self.params.model)

    def setup(self, weights: Mapping[str, Weights]) -> None:
        """Connect to the server.

        Raises:
            RuntimeError: the server does not answer or refuses the key; the message says what to do.
        """
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
        """A mono 16-bit WAV, base64-encoded."""
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(AUDIO_RATE_HZ)
            file.writeframes(np.round(np.clip(audio, -1, 1) * 32_767).astype("<i2").tobytes())
        data = base64.b64encode(buffer.getvalue()).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}

    def answer(self, messages: list[Message]) -> str:
        """Ask the server, within the request rate."""
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
        """True for errors of the API, except those that any song would have run into."""
        o = self._openai
        refused = (o.AuthenticationError, o.PermissionDeniedError, o.NotFoundError)
        unreachable = isinstance(error, o.APIConnectionError) and not isinstance(error, o.APITimeoutError)
        of_the_api = isinstance(error, o.APIError) and not (unreachable or isinstance(error, refused))
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
            message = f"{self.params.base_url} refused the key in {self.params.api_key_env}: {error}"
            raise RuntimeError(message) from error
        except openai.APIConnectionError as error:
            message = (
                f"no answer from {self.params.base_url}: start a server there (vllm serve {self.params.model}), give "
                "--set caption.base_url=URL, or write captions from the measured facts with --set "
                "caption.engine=template"
            )
            raise RuntimeError(message) from error
        except openai.APIStatusError:
            pass  # not every server lists its models
