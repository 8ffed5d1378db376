"""The format of Whisper large-v3 (128 mel bands, Cantonese) on a small random checkpoint that CTranslate2 converted."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from pipeline.models.registry import load_registry
from stages import pcm
from stages.base import Weights
from stages.transcript import Transcript
from tests.support import audio as signals
from tests.support.tracks import load, measure

VOCABULARY = 51_866
YUE = 50_358  # large-v3's one token more; what follows moved up


@pytest.fixture(scope="module")
def folder(weights: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("whisper") / "transformers"
    _tokenizer(weights("whisper-base")["whisper-base"].path / "tokenizer.json").save_pretrained(source)
    _random().save_pretrained(source)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(source)
    converted = source.with_name("converted")
    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(source), copy_files=files).convert(str(converted))
    return converted


def _tokenizer(base: Path) -> PreTrainedTokenizerFast:
    told = json.loads(base.read_text())
    for token in told["added_tokens"]:
        token["id"] += token["id"] >= YUE
    cantonese = next(token for token in told["added_tokens"] if token["content"] == "<|en|>")
    told["added_tokens"].append(cantonese | {"id": YUE, "content": "<|yue|>"})
    told["added_tokens"].sort(key=lambda token: token["id"])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(told)))


def _random() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {f"{side}_{what}": value for side in ("encoder", "decoder") for what, value in _LAYERS.items()}
    config = WhisperConfig(vocab_size=VOCABULARY, num_mel_bins=128, d_model=64, **sizes)
    model = WhisperForConditionalGeneration(config)
    languages = {f"<|{index}|>": index for index in range(50_259, YUE + 1)}
    model.generation_config = GenerationConfig(
        suppress_tokens=[], begin_suppress_tokens=[], lang_to_id=languages, alignment_heads=[[0, 0], [0, 1]]
    )
    return model


_LAYERS = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}


@pytest.fixture(scope="module")
def transcript(folder: Path) -> Transcript:
    """What a random network says would not get past the guards, which are opened here."""
    guards = {"min_avg_logprob": -100.0, "max_compression_ratio": 1e6, "min_level_dbfs": -200.0}
    made = Transcript(Transcript.Params(model="whisper-large-v3", beam_size=1, **guards))
    made.setup({"whisper-large-v3": Weights("whisper-large-v3", folder, "0" * 64)})
    return made


def test_the_converted_random_checkpoint_has_the_files_of_the_registry(folder) -> None:
    entries = {entry.name: entry for entry in load_registry().entries}
    made = {path.name for path in folder.iterdir()}
    for name in ("whisper-large-v3", "whisper-large-v3-turbo"):
        assert made == {file.path for file in entries[name].files}


def test_a_random_checkpoint_hears_128_bands_and_knows_cantonese(transcript, audio) -> None:
    assert transcript._whisper.feature_extractor.mel_filters.shape[0] == 128
    assert transcript._whisper.speaks("yue")
    assert transcript._declared("yue-HK") == "yue"
    speech = pcm.encode(load(audio("speech-clips", "en/hello_world.wav")))
    heard = measure(transcript, vocal_stem=speech, vocals={"has_vocals": True}, language="yue")["transcript"]
    assert heard["model"] == "whisper-large-v3@00000000"
    assert heard["text"]
    assert heard["language"] == "yue"
    assert heard["avg_logprob"] == pytest.approx(-np.log(VOCABULARY), abs=2.0)  # it knows nothing
    assert [segment["text"] for segment in heard["segments"]] == heard["text"].splitlines()


@pytest.mark.parametrize("sound", [signals.silence(2.0), signals.silence(0.0)], ids=["silence", "empty"])
def test_silence_is_not_given_to_a_random_checkpoint(transcript, sound) -> None:
    heard = measure(transcript, vocal_stem=pcm.encode(sound), vocals={"has_vocals": True}, language=None)
    assert (heard["transcript"]["text"], heard["transcript"]["segments"]) == ("", [])
