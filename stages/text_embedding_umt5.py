"""Text embeddings of the full profile: umT5 base, the text encoder that ACE-Step was trained with."""

from collections.abc import Mapping

from stages import base, text_embedding


class Params(text_embedding.Params):
    """As those of the engine `e5`; the model is the encoder of a T5, mT5 or umT5."""

    model: str = "umt5-base"


class TextEmbeddingUmt5(text_embedding.TextEmbedding):
    """Token states of every caption variant, little-endian float16 [tokens, 768], unpadded."""

    Params = Params

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the encoder and its tokenizer."""
        base.Stage.setup(self, weights)
        from stages.nets.umt5 import UMT5  # here, for transformers takes seconds to import

        self._encode = UMT5.load(weights[self.params.model].path, self.params.max_tokens, self.device)
