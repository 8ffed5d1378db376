"""Prompts, lyrics and voices as conditions: E5 with its real weights, umT5 tiny and random in the released layout."""

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

from stages.lyric_tokens import LyricTokens, encode, load_vocabulary
from stages.text.language import LANGUAGES
from stages.text_embedding import TextEmbedding
from tests.support.tracks import measure, ready
from training.sampling.conditions import Conditions
from training.sampling.errors import SamplingError
from training.sampling.prompts import TextEncoder, load_text_encoder, lyric_ids, make_conditions

VOCABULARY = load_vocabulary()
PROMPTS = ["piano", "a sad slow piano ballad about lost love", "fast heavy metal"]
LYRICS = "[verse]\nHello baby\n\nsweet 5 times\n[chorus]\nje ne regrette rien du tout ce soir"
WEAKENED = (8, 9)
TAU = 0.01


@pytest.fixture(scope="module")
def e5_folder(weights: Callable) -> Path:
    return weights("e5-small")["e5-small"].path


@pytest.fixture(scope="module")
def e5(e5_folder: Path) -> TextEncoder:
    return load_text_encoder(e5_folder)


def tiny_t5(folder: Path, kind: str = "umt5", layers: int = 10) -> Path:
    """A random encoder and a letter-by-letter tokenizer, saved by the libraries' own hands."""
    import transformers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), ("\u2581piano", -1.0)]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz")], 2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    config_type, model_type = {
        "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
        "t5": (transformers.T5Config, transformers.T5EncoderModel),
    }[kind]
    torch.manual_seed(0)
    config = config_type(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=layers, num_heads=2, feed_forward_proj="gated-gelu"
    )
    model_type(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def umt5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5(tmp_path_factory.mktemp("umt5"))


@pytest.fixture(scope="module")
def umt5(umt5_folder: Path) -> TextEncoder:
    return load_text_encoder(umt5_folder)


def conditions(
    encoder: TextEncoder, prompts: list[str] = PROMPTS, lyrics: list[str] | None = None, **more
) -> Conditions:
    more = {"vocabulary": VOCABULARY, "speaker_dim": 12} | more
    return make_conditions(prompts, lyrics or [""], text_encoder=encoder, **more)


def assert_each_gets_what_it_gets_alone(encoder: TextEncoder, weakened: bool) -> None:
    states, mask = encoder.encode(PROMPTS, weakened=weakened)
    assert states.dtype == torch.float32
    assert states.shape == (*mask.shape, encoder.dim)
    for prompt, padded, real in zip(PROMPTS, states, mask.bool(), strict=True):
        alone = encoder.encode([prompt], weakened=weakened)[0][0]
        torch.testing.assert_close(padded[real], alone, rtol=1e-5, atol=1e-5)
        assert not padded[~real].any()
    assert len(set(mask.sum(1).tolist())) > 1


# The text encoders.


@pytest.mark.parametrize("weakened", [False, True])
def test_padding_changes_no_states_of_e5(e5: TextEncoder, weakened: bool) -> None:
    assert e5.dim == 384
    assert_each_gets_what_it_gets_alone(e5, weakened)


@pytest.mark.parametrize("weakened", [False, True])
def test_padding_changes_no_states_of_a_random_umt5(umt5: TextEncoder, weakened: bool) -> None:
    assert umt5.dim == 16
    assert_each_gets_what_it_gets_alone(umt5, weakened)


def test_a_prompt_is_read_as_captions_in_shards_are(e5: TextEncoder, weights: Callable) -> None:
    caption = {"simplified": PROMPTS[0], "expanded": PROMPTS[1]}
    items = measure(ready(TextEmbedding, weights), caption=caption)["text_embedding"]
    for prompt, item in zip(PROMPTS, items, strict=False):
        assert e5.encode([prompt])[0].numpy().astype("<f2").tobytes() == item["data"]


def test_a_random_umt5_reads_what_transformers_reads(umt5: TextEncoder, umt5_folder: Path) -> None:
    from transformers import AutoTokenizer, UMT5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(umt5_folder, local_files_only=True, pad_token="<pad>")
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = UMT5EncoderModel.from_pretrained(umt5_folder)(batch.input_ids, batch.attention_mask)[0]
    states, mask = umt5.encode(PROMPTS)
    assert torch.equal(mask, batch.attention_mask)
    torch.testing.assert_close(states, expected * mask[..., None])


def test_weakening_e5_is_scaling_two_query_layers(e5: TextEncoder) -> None:
    layers = e5._net._model.encoder.layer
    assert_weakened_is_scaled(e5, [layers[index].attention.self.query for index in WEAKENED])


def test_weakening_a_random_umt5_is_scaling_two_query_layers(umt5: TextEncoder) -> None:
    blocks = umt5._net._model.encoder.block
    assert_weakened_is_scaled(umt5, [blocks[index].layer[0].SelfAttention.q for index in WEAKENED])


def assert_weakened_is_scaled(encoder: TextEncoder, projections: list[nn.Linear]) -> None:
    plain = encoder.encode(PROMPTS)[0]
    weakened = encoder.encode(PROMPTS, weakened=True)[0]
    assert (weakened - plain).abs().max() > 1e-3
    assert torch.equal(encoder.encode(PROMPTS)[0], plain)
    kept = [copy.deepcopy(projection.state_dict()) for projection in projections]
    try:
        for projection in projections:
            for parameter in projection.parameters():
                parameter.data *= TAU
        torch.testing.assert_close(encoder.encode(PROMPTS)[0], weakened, rtol=1e-5, atol=1e-5)
    finally:
        for projection, state in zip(projections, kept, strict=True):
            projection.load_state_dict(state)


def test_weakening_ends_with_an_error_too(e5: TextEncoder) -> None:
    before = e5.encode(["piano"])[0]
    with pytest.raises(TypeError):
        e5.encode([None], weakened=True)
    assert torch.equal(e5.encode(["piano"])[0], before)


def test_a_long_prompt_is_cut_with_a_warning(e5: TextEncoder, umt5: TextEncoder) -> None:
    with pytest.warns(UserWarning, match=r"has 1006 tokens; the model reads 256, the last 750 are cut"):
        assert e5.encode(["drums and bass " * 200])[0].shape == (1, 256, 384)
    with pytest.warns(UserWarning, match=r"has 301 tokens; the model reads 256, the last 45 are cut"):
        _, mask = umt5.encode([" ".join(["piano"] * 300), "piano"])
    assert mask.sum(1).tolist() == [256, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        umt5.encode([" ".join(["piano"] * 255)])


def test_an_encoder_without_the_blocks_cannot_be_weakened(tmp_path: Path) -> None:
    shallow = load_text_encoder(tiny_t5(tmp_path, layers=3))
    assert conditions(shallow).text_null is None
    with pytest.raises(SamplingError, match=r"3 blocks.*blocks 8 and 9.*use_erg_tag=False"):
        conditions(shallow, weakened_text=True)


def test_a_random_t5_keeps_its_own_position_biases(tmp_path: Path) -> None:
    """Only its first block has them, where a umT5 has them in every one."""
    encoder = load_text_encoder(tiny_t5(tmp_path, kind="t5"))
    assert type(encoder._net._model).__name__ == "T5EncoderModel"
    assert_each_gets_what_it_gets_alone(encoder, weakened=True)


# What is no text encoder.


@pytest.fixture
def damaged(umt5_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(umt5_folder, tmp_path / "encoder"))


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SamplingError, match=r"no text encoder at .*model_type"):
        load_text_encoder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SamplingError, match="no text encoder at"):
        load_text_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(SamplingError, match="'gpt2'; take one of umt5, mt5, t5, bert"):
        load_text_encoder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"{"])
def test_missing_and_broken_files_are_refused(damaged: Path, name: str, content: bytes | None) -> None:
    (damaged / name).unlink()
    if content:
        (damaged / name).write_bytes(content)
    with pytest.raises(SamplingError, match=r"does not load; it needs config\.json, tokenizer\.json"):
        load_text_encoder(damaged)


def test_weights_come_from_safetensors_only(damaged: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(damaged / "model.safetensors"), damaged / "pytorch_model.bin")
    (damaged / "model.safetensors").unlink()
    with pytest.raises(SamplingError, match="does not load"):
        load_text_encoder(damaged)


def test_an_encoder_without_a_weight_is_refused(damaged: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(damaged / "model.safetensors")
    del weights["encoder.block.4.layer.0.SelfAttention.q.weight"]
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(SamplingError, match=r"1 weights are missing, encoder\.block\.4\.layer\.0\.SelfAttention\.q"):
        load_text_encoder(damaged)


def test_an_encoder_of_another_tokenizer_is_refused(damaged: Path) -> None:
    tokenizer = json.loads((damaged / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] += [[f"piece{index}", -5.0] for index in range(50)]
    (damaged / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(SamplingError, match="the tokenizer has 81 tokens, the model 40"):
        load_text_encoder(damaged)


def test_an_encoder_with_nan_weights_is_refused(damaged: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(damaged / "model.safetensors")
    weights["encoder.block.0.layer.0.SelfAttention.q.weight"][0, 0] = torch.nan
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(SamplingError, match="not finite: its weights are damaged"):
        load_text_encoder(damaged).encode(PROMPTS)


# Lyrics.


@pytest.mark.parametrize("language", [None, "en", "fr", "pt-BR"])
def test_lyric_ids_are_the_stages_ids(language: str | None) -> None:
    assert lyric_ids(LYRICS, VOCABULARY, language) == encode(LYRICS, language, VOCABULARY)


@pytest.mark.parametrize("end", ["\r\n", "\r", "\u2028"])
def test_line_ends_and_margins_of_a_file_change_nothing(end: str) -> None:
    assert lyric_ids("\ufeff" + end + LYRICS.replace("\n", end) + end, VOCABULARY) == encode(
        LYRICS, vocabulary=VOCABULARY
    )


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["[verse]", "", "hello world", "oh, baby!", "ça va bien ce soir"]), max_size=8))
def test_files_of_any_system_give_the_same_ids(lines: list[str]) -> None:
    assert lyric_ids("\r\n".join(lines), VOCABULARY) == lyric_ids("\n".join(lines), VOCABULARY)


def test_lyric_ids_are_those_of_lyrics_in_shards() -> None:
    transcript = {"text": "hello baby", "language": "en", "segments": []}
    lyrics = "Hello baby\n$5 & je ne regrette rien du tout ce soir"
    row = ready(LyricTokens, lambda: {}).process({"transcript": transcript, "given_lyrics": lyrics})
    assert lyric_ids(lyrics, VOCABULARY, "en") == row["lyric_tokens"]["ids"]


def test_an_unknown_language_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SamplingError, match=f"'xx': take one of {', '.join(LANGUAGES)}"):
        lyric_ids("hello", VOCABULARY, "xx")


def test_lyrics_over_the_limit_are_refused_with_what_to_cut() -> None:
    lines = ["hello my baby"] * 1000
    tokens = len(encode("\n".join(lines), vocabulary=VOCABULARY))
    with pytest.raises(
        SamplingError, match=f"{tokens} tokens long and the model reads 4096: cut {tokens - 4096}"
    ) as told:
        lyric_ids("\n".join(lines), VOCABULARY)
    surplus_lines = int(str(told.value).split("about ")[1].split(" ")[0])
    assert 4000 < len(lyric_ids("\n".join(lines[surplus_lines:]), VOCABULARY)) <= 4096


def test_lyrics_need_a_vocabulary_and_no_lyrics_none(umt5: TextEncoder) -> None:
    with pytest.raises(SamplingError, match=r"no lyric vocabulary: put it there as lyric_vocabulary\.json"):
        lyric_ids("hello", None)
    assert lyric_ids(" \r\n \n", None) == []
    assert not conditions(umt5, vocabulary=None).lyric_mask.any()


# Conditions.


def test_conditions_of_a_batch(umt5: TextEncoder) -> None:
    speakers = torch.arange(36.0).view(3, 12)
    made = conditions(umt5, lyrics=["", LYRICS, "hello"], speaker=speakers, weakened_text=True)
    ids = [lyric_ids(text, VOCABULARY) for text in ("", LYRICS, "hello")]
    assert made.batch_size == 3
    assert made.lyrics.dtype == torch.int64
    assert made.lyric_mask.sum(1).tolist() == [len(song) for song in ids]
    for song, row in zip(ids, made.lyrics.tolist(), strict=True):
        assert row == song + [0] * (len(ids[1]) - len(song))
    assert torch.equal(made.text, umt5.encode(PROMPTS)[0])
    assert made.text_null is not None
    assert torch.equal(made.text_null, umt5.encode(PROMPTS, weakened=True)[0])
    assert torch.equal(made.speaker, speakers)


def test_one_text_and_one_voice_serve_all_songs(umt5: TextEncoder) -> None:
    made = conditions(umt5, lyrics=["hello"], speaker=torch.ones(12, dtype=torch.float64))
    assert made.lyrics.tolist() == [lyric_ids("hello", VOCABULARY)] * 3
    assert made.speaker.dtype == torch.float32
    assert made.speaker.shape == (3, 12)
    assert bool((made.speaker == 1).all())


def test_no_lyrics_and_no_voice_are_a_masked_token_and_zeros(umt5: TextEncoder) -> None:
    made = conditions(umt5)
    assert made.lyrics.tolist() == made.lyric_mask.tolist() == [[0]] * 3
    assert made.speaker.shape == (3, 12)
    assert not made.speaker.any()


def test_margins_of_a_prompt_say_nothing(e5: TextEncoder) -> None:
    assert torch.equal(conditions(e5, ["  piano\n"]).text, conditions(e5, ["piano"]).text)


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("no prompt", {"prompts": []}),
        ("prompt 2 is empty", {"prompts": ["piano", " \n"]}),
        ("2 lyrics for 3 prompts", {"lyrics": ["a", "b"]}),
        (r"12 dimensions.*\[12\] or \[3, 12\], not \[512\]", {"speaker": torch.zeros(512)}),
        (r"not \[2, 12\]", {"speaker": torch.zeros(2, 12)}),
        ("unknown lyrics language 'klingon'", {"lyrics": ["hello"], "language": "klingon"}),
    ],
)
def test_what_makes_no_conditions_is_refused(umt5: TextEncoder, message: str, given: dict) -> None:
    with pytest.raises(SamplingError, match=message):
        conditions(umt5, **given)


def shapes(**changed: torch.Tensor) -> Conditions:
    right = {
        "text": torch.zeros(2, 5, 16),
        "text_mask": torch.ones(2, 5),
        "speaker": torch.zeros(2, 12),
        "lyrics": torch.zeros(2, 7, dtype=torch.int64),
        "lyric_mask": torch.ones(2, 7),
    }
    return Conditions(**right | changed)


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        (r"text must have 3 non-empty dimensions, not shape \[2, 5\]", {"text": torch.zeros(2, 5)}),
        (r"text must have 3 non-empty dimensions, not shape \[2, 0, 16\]", {"text": torch.zeros(2, 0, 16)}),
        (r"text_mask must have shape \[2, 5\] to go with text, not \[2, 4\]", {"text_mask": torch.ones(2, 4)}),
        (r"text_null must have shape \[2, 5, 16\]", {"text_null": torch.zeros(2, 5, 8)}),
        (r"lyric_mask must have shape \[2, 7\] to go with lyrics", {"lyric_mask": torch.ones(7)}),
        ("lyrics must be int64 token ids, not torch.float32", {"lyrics": torch.zeros(2, 7)}),
        ("3 speakers for 2 prompts", {"speaker": torch.zeros(3, 12)}),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(message: str, changed: dict) -> None:
    with pytest.raises(SamplingError, match=message):
        shapes(**changed)


def test_moving_and_repeating_conditions() -> None:
    made = shapes(speaker=torch.arange(24.0).view(2, 12)).to("cpu", torch.bfloat16)
    assert made.text.dtype == made.speaker.dtype == torch.bfloat16
    assert made.lyrics.dtype == torch.int64
    assert made.text_mask.dtype == torch.float32
    assert made.text_null is None
    again = made.repeat(3)
    assert again.batch_size == 6
    assert again.text.shape == (6, 5, 16)
    assert again.text_null is None
    assert torch.equal(again.speaker[4:], made.speaker)
