"""Qwen2.5-Omni as captioner: a tiny checkpoint in the released files, random or taught to tell two sounds apart."""

import base64
import io
import json
import wave
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas import columns
from stages import pcm
from stages.base import Weights
from stages.caption import Caption
from stages.caption_endpoint import CaptionEndpoint, CaptionEndpointParams
from stages.caption_qwen import MODEL, CaptionQwen
from stages.captioning.prompt import Message, Prompt
from stages.nets.qwen_omni import QwenOmni
from tests.support.tiny_qwen_omni import build, noise, tone

QUESTION = "Describe {facts}. JSON."
PROMPT = {
    "version": 3,
    "system": "Music.",
    "listen": QUESTION,
    "recaption": "Say {facts}.",
    "form": "",
    "repair": "No: {error}",
}
TEXTS = ("simplified", "expanded", "descriptive", "synonyms", "use_cases")
MEASURED = {"rhythm": {"bpm": 100.0, "time_signature": 4}}


def reply(genre: str, words: str) -> dict[str, Any]:
    analysis = {"genre": genre, "instruments": [words], "tempo": "none", "mood": words}
    return {**dict.fromkeys(TEXTS, words), "analysis": analysis, "lyrical_rap_check": "instrumental"}


REPLIES = {"tone": reply("drone", "a pure tone"), "noise": reply("noise", "loud hiss")}
SOUNDS = {"tone": tone(1.0), "noise": noise(1.0)}


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompt") / "prompt.yaml"
    path.write_text(json.dumps(PROMPT))
    return path


def conversation(sound: np.ndarray, prompt: Path) -> list[Message]:
    return Prompt.load(prompt).ask(MEASURED, {"type": "audio", "audio": sound})


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, prompt: Path) -> Path:
    lessons = [(conversation(SOUNDS[name], prompt), json.dumps(REPLIES[name])) for name in SOUNDS]
    texts = [text for messages, answer in lessons for text in (answer, messages[1]["content"][1]["text"])]
    return build(tmp_path_factory.mktemp("taught") / "qwen", texts, lessons, steps=120)


def row(sound: np.ndarray) -> dict[str, Any]:
    """The sound at 44.1 kHz, as if it had come from a file."""
    import soxr

    loud = soxr.resample(sound, 16_000, 44_100)
    return {"row_id": "a", "pcm": pcm.encode(np.stack([loud, loud])), **MEASURED}


def stage(folder: Path, prompt: Path, **params: Any) -> CaptionQwen:
    made = CaptionQwen(CaptionQwen.Params(prompt=prompt, max_tokens=250, **params))
    made.setup({MODEL: Weights(MODEL, folder, "0" * 64)})
    return made


@pytest.mark.parametrize("name", SOUNDS)
def test_a_tiny_taught_checkpoint_captions_what_it_hears(taught, prompt, name) -> None:
    made = stage(taught, prompt).process(row(SOUNDS[name]))["caption"]
    told = pa.array([made], columns.CAPTION).to_pylist()[0]
    assert told["failure"] is None
    assert {key: told[key] for key in REPLIES[name]} == REPLIES[name]
    assert told["source"] == f"{MODEL}@00000000"
    assert told["model"].startswith(f"{MODEL}@00000000+prompt-3@")


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.5, 3.0])
def test_sounds_of_any_length_take_as_many_tokens_as_the_tower_makes(taught, prompt, seconds) -> None:
    qwen = QwenOmni.load(taught)
    heard = qwen._audio_features([tone(seconds), noise(1.0)])
    lengths = qwen._token_counts(heard["feature_attention_mask"])
    with torch.inference_mode():
        states = qwen._thinker.model.get_audio_features(**heard).last_hidden_state
    assert len(states) == sum(lengths)
    assert lengths[1] == 25
    assert isinstance(qwen.answer(conversation(tone(seconds), prompt), 5), str)


def test_a_tiny_random_checkpoint_falls_back_to_what_was_measured(tmp_path, prompt) -> None:
    random = build(tmp_path / "qwen", [QUESTION, json.dumps(REPLIES)])
    for listen in (True, False):
        made = stage(random, prompt, listen=listen).process(row(tone(0.5)))["caption"]
        assert made["failure"].startswith("ReplyError: it ")
        expected = Caption().process({"row_id": "a", **MEASURED})["caption"]
        assert {key: made[key] for key in expected} == expected


def test_a_checkpoint_without_some_of_its_weights_is_refused(tmp_path) -> None:
    folder = build(tmp_path / "qwen", ["words"])
    tensors = load_file(folder / "model.safetensors")
    del tensors["thinker.audio_tower.conv1.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"no weights for model\.audio_tower\.conv1\.weight and 0 more"):
        QwenOmni.load(folder)


@pytest.fixture(scope="module")
def server(taught: Path) -> Iterator[str]:
    """The taught model behind the endpoint that vLLM offers for Qwen2.5-Omni, as far as captions need it."""
    qwen = QwenOmni.load(taught)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = qwen.answer([_decoded(message) for message in asked["messages"]], asked["max_tokens"])
            message = {"role": "assistant", "content": said}
            self._answer({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})

        def _answer(self, told: dict[str, Any]) -> None:
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/v1"
    running.shutdown()
    running.server_close()


def _decoded(message: Message) -> Message:
    if isinstance(message["content"], str):
        return message
    return message | {
        "content": [_sound(part) if part["type"] == "input_audio" else part for part in message["content"]]
    }


def _sound(part: Message) -> Message:
    with wave.open(io.BytesIO(base64.b64decode(part["input_audio"]["data"]))) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return {"type": "audio", "audio": samples.astype(np.float32) / 32_767}


@pytest.mark.parametrize("name", SOUNDS)
def test_a_tiny_taught_checkpoint_behind_a_server_hears_what_the_endpoint_sends(server, prompt, name) -> None:
    made = CaptionEndpoint(
        CaptionEndpointParams(base_url=server, model="tiny", prompt=prompt, max_tokens=250, max_retries=0)
    )
    made.setup({})
    told = made.process(row(SOUNDS[name]))["caption"]
    assert {key: told[key] for key in REPLIES[name]} == REPLIES[name]
    assert told["source"] == "tiny"
