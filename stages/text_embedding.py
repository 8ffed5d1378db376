"""Text embeddings of captions, the input of the generator's cross-attention."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from schemas import columns
from stages import base

if TYPE_CHECKING:
    from stages.nets.token_encoder import TokenEncoder

_VARIANTS = ("simplified", "expanded", "descriptive", "synonyms", "use_cases", "analysis")


class TextEmbeddingParams(base.Params):
    """Which encoder, and how much of a caption it reads.

    Attributes:
        model: entry of the model store, a BERT with its tokenizer.
        max_tokens: length of the longest embedding, including the prefix and the opening and closing tokens.
    """

    model: str = "e5-small"
    max_tokens: int = 256


class TextEmbedding(base.Stage):
    """Token states of every caption variant, little-endian float16 [tokens, 384], unpadded.

    A variant that is null or blank has no item; `analysis` is read as "genre: rock; instruments: guitar, drums; ...".
    A prompt for a model trained on these has to be embedded with `stages.nets.e5` too, because of the prefix.
    """

    name = "text_embedding"
    type = columns.TEXT_EMBEDDING
    reads = {"caption": pa.struct([columns.CAPTION.field(variant) for variant in _VARIANTS])}
    Params = TextEmbeddingParams

    @property
    def models(self) -> tuple[str, ...]:
        """The encoder to load."""
        return (self.params.model,)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the encoder and its tokenizer."""
        super().setup(weights)
        from stages.nets.e5 import E5  # here because transformers takes seconds to import

        self._encode: TokenEncoder = E5.load(weights[self.params.model].path, self.params.max_tokens)

    def process(self, track: base.Track) -> dict[str, Any]:
        """Embed every caption variant that is not blank."""
        return {self.column: [self._item(variant, text) for variant, text in texts(track["caption"] or {})]}

    def _item(self, variant: str, text: str) -> dict[str, Any]:
        states = self._encode(text).astype("<f2")
        tokens, dim = states.shape
        return {"variant": variant, "tokens": tokens, "dim": dim, "data": states.tobytes(), "model": self.model}


def texts(caption: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The variants of a caption that are not blank, each with its text: those that get an embedding."""
    for variant in _VARIANTS:
        value = caption.get(variant)
        text = _rendered(value) if isinstance(value, Mapping) else value or ""
        if text.strip():
            yield variant, text.strip()


def _rendered(analysis: Mapping[str, Any]) -> str:
    parts = {name: ", ".join(value) if isinstance(value, list) else value for name, value in analysis.items()}
    return "; ".join(f"{name}: {value}" for name, value in parts.items() if value)
