"""Captions asked of a real OpenAI-compatible server on loopback: llama.cpp with SmolLM2, and what goes wrong there."""

import base64
import io
import json
import time
import wave
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import APIConnectionError, AuthenticationError

from pipeline.planning.dag import build_dag
from schemas import columns
from schemas.config import CurateConfig
from stages import pcm
from stages.caption import Caption
from stages.caption_endpoint import CaptionEndpoint, CaptionEndpointParams
from stages.captioning.prompt import PROMPT, Prompt
from stages.captioning.reply import Reply, ReplyError, parse
from tests.support.faulty_proxy import Proxy, faulty_proxy
from tests.support.llama_server import KEY, llama_server
from tests.support.places import GOLDEN
from tests.support.tracks import load

SHORT = GOLDEN / "caption_prompt_for_a_small_model.yaml"
ROW = {
    "row_id": "a",
    "title": "Secret Title",
    "pcm": b"",
    "rhythm": {"bpm": 151.6, "time_signature": 4},
    "key": {"tonic": "C#", "mode": "minor", "strength": 0.8},
    "tags": {"names": ["rock", "guitar", "sad", "drums"]},
    "vocals": {"has_vocals": True},
}
TEXTS = ("simplified", "expanded", "descriptive", "synonyms", "use_cases")


@pytest.fixture(scope="module")
def server(weights: Callable) -> Iterator[str]:
    entry = weights("smollm2-135m-instruct")["smollm2-135m-instruct"]
    with llama_server(next(entry.path.glob("*.gguf"))) as url:
        yield url


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with faulty_proxy(server) as running:
        yield running


def asking(proxy: Proxy, **changes: Any) -> CaptionEndpoint:
    usual = {"base_url": proxy.url, "model": "smollm2", "listen": False, "prompt": SHORT, "max_tokens": 400}
    stage = CaptionEndpoint(CaptionEndpointParams(**(usual | {"max_retries": 1, "timeout_s": 60.0} | changes)))
    stage.setup({})
    return stage


def caption(stage: CaptionEndpoint, row: dict[str, Any] = ROW) -> dict[str, Any]:
    made = stage.process(row)["caption"]
    return pa.array([made], columns.CAPTION).to_pylist()[0]


def is_measured(made: dict[str, Any]) -> bool:
    expected = Caption().process(ROW)["caption"]
    return all(made[name] == value for name, value in expected.items())


def test_a_real_model_puts_measured_facts_into_words(proxy) -> None:
    made = caption(asking(proxy))
    assert made["failure"] is None
    assert made["source"] == "smollm2"
    assert made["model"].startswith("smollm2+prompt-7@")
    assert all(made[text] for text in TEXTS)
    assert made["analysis"]["genre"]
    assert made["lyrical_rap_check"] in ("instrumental", "sung", "rap")
    assert not is_measured(made)
    (asked,) = proxy.asked
    told = json.dumps(asked["messages"])
    for fact in ("152", "4/4", "C# minor", "guitar"):
        assert fact in told
    assert "Secret" not in told
    assert asked["response_format"]["json_schema"]["schema"]["additionalProperties"] is False


@pytest.mark.parametrize("fault", ["429", "500"])
def test_a_refusal_is_asked_again(proxy, fault) -> None:
    stage = asking(proxy)
    proxy.faults = [fault]
    assert caption(stage)["source"] == "smollm2"
    assert len(proxy.asked) == 2


@pytest.mark.parametrize(
    ("fault", "changes", "failure"),
    [
        ("429", {}, "RateLimitError"),
        ("500", {}, "InternalServerError"),
        ("slow", {"timeout_s": 0.3}, "APITimeoutError"),
    ],
)
def test_a_server_that_goes_on_failing_costs_the_row_its_model_only(proxy, fault, changes, failure) -> None:
    stage = asking(proxy, **changes)
    proxy.faults = [fault] * 2
    made = caption(stage)
    assert len(proxy.asked) == 2
    assert is_measured(made)
    assert made["source"] == "measured"
    assert made["failure"].startswith(failure)


@pytest.mark.parametrize(("fault", "problem"), [("cut", "it is no valid JSON"), ("chatter", "it holds no JSON object")])
def test_an_answer_of_no_use_is_sent_back_once(proxy, fault, problem) -> None:
    stage = asking(proxy)
    proxy.faults = [fault]
    caption(stage)
    first, second = (asked["messages"] for asked in proxy.asked)
    assert second[: len(first)] == first
    answer, complaint = second[len(first) :]
    assert answer["role"] == "assistant"
    assert problem in complaint["content"]

    proxy.faults = [fault, fault]
    made = caption(stage)
    assert len(proxy.asked) == 4
    assert is_measured(made)
    assert made["failure"].startswith(f"ReplyError: {problem}")


def test_answers_cut_off_by_the_server_itself_are_told(proxy) -> None:
    made = caption(asking(proxy, max_tokens=20))
    assert "it is no valid JSON" in made["failure"]


def test_a_server_that_cannot_hear_costs_the_row_its_model_only(proxy, audio) -> None:
    """llama.cpp refuses audio for a model of text."""
    sound = pcm.encode(load(audio("demo-music", "happy_electronic_1.opus"), 6.0))
    made = caption(asking(proxy, listen=True, max_audio_s=2.0), ROW | {"pcm": sound})
    assert is_measured(made)
    assert "audio input is not supported" in made["failure"]
    part = proxy.asked[0]["messages"][1]["content"][0]
    with wave.open(io.BytesIO(base64.b64decode(part["input_audio"]["data"]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16_000, 1, 32_000)
        heard = np.frombuffer(file.readframes(32_000), "<i2") / 32_767
    np.testing.assert_allclose(heard, pcm.mono(sound, 16_000)[32_000:64_000], atol=1e-4)


def test_a_wrong_key_and_an_absent_server_stop_at_once(server, proxy, monkeypatch) -> None:
    with pytest.raises(RuntimeError, match=r"no answer from http://127\.0\.0\.1:9/v1: .*--set caption\.base_url"):
        asking(Proxy("http://127.0.0.1:9/v1"), max_retries=0)
    stage = asking(proxy)
    stage._client.api_key = "wrong"
    with pytest.raises(AuthenticationError):
        stage.process(ROW)
    stage._client.base_url = "http://127.0.0.1:9/v1"
    with pytest.raises(APIConnectionError):
        stage.process(ROW)


def test_requests_keep_the_rate(proxy) -> None:
    stage = asking(proxy, requests_per_minute=120.0, concurrency=2, max_tokens=5)
    started = time.monotonic()
    caption(stage)  # two requests, the second one a second later: this replica may send half of two a second
    assert time.monotonic() - started >= 1.0


def test_where_a_server_is_decides_no_content() -> None:
    def node(**params: Any) -> Any:
        stages = {"decode": {}, "caption": {"engine": "endpoint", **params}}
        config = CurateConfig.model_validate({"input": {"path": "x"}, "output": "y", "stages": stages})
        dag = build_dag(config, {}, {})
        assert [[node.name for node in group] for group in dag.operators] == [["decode"], ["caption"]]
        return dag.operators[1][0]

    usual = node()
    assert usual.concurrency == 4
    assert node(base_url="http://elsewhere/v1", concurrency=9, max_retries=1).fingerprint == usual.fingerprint
    assert node(temperature=0.7).fingerprint != usual.fingerprint
    assert node(prompt=str(SHORT)).fingerprint != usual.fingerprint


def test_the_prompt_names_every_key_of_a_reply(tmp_path) -> None:
    prompt = Prompt.load(PROMPT)
    for name in Reply.model_fields:
        assert f"{name}:" in prompt.form
    (tmp_path / "other.yaml").write_text("system: hello")
    with pytest.raises(ValueError, match=r"other\.yaml: a prompt has the keys version"):
        Prompt.load(tmp_path / "other.yaml")


GOOD = {
    **dict.fromkeys(TEXTS, "Some words."),
    "analysis": {"genre": "rock", "instruments": ["guitar"], "tempo": "fast", "mood": "sad"},
    "lyrical_rap_check": "rap",
}


@given(st.text(), st.text(), st.sampled_from(["{}", "```json\n{}\n```", "Here it is: {} Enjoy {{it}}!"]))
def test_any_answer_is_a_reply_or_a_clear_error(words, rest, frame) -> None:
    with pytest.raises(ReplyError, match="it "):
        parse(words.replace("{", "(") + rest.replace("{", "["))
    assert parse(frame.format(json.dumps(GOOD))).model_dump() == GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"simplified": " "}, "simplified: String should have at least 1 character"),
        ({"lyrical_rap_check": "maybe"}, "lyrical_rap_check: Input should be"),
        ({"analysis": {}}, "analysis.genre: Field required"),
        ({"mood": "sad"}, "mood: Extra inputs are not permitted"),
        ({"expanded": "la " * 1000}, "expanded: String should have at most 800 characters"),
    ],
)
def test_what_is_wrong_with_an_answer_is_told(change, message) -> None:
    with pytest.raises(ReplyError, match=message):
        parse(json.dumps(GOOD | change))


def test_a_bomb_of_brackets_is_an_error() -> None:
    with pytest.raises(ReplyError):
        parse('{"a": ' + "[" * 100_000)
