"""Text embeddings of the full profile: umT5 base, the text encoder that ACE-Step was trained with."""

from collections.abc import Mapping

from stages import base, text_embedding


class TextEmbeddingUmt5Params(text_embedding.TextEmbeddingParams):
    """As in the engine `e5`, with a different kind of model.

    Attributes:
        model: entry of the model store, the encoder of a T5, mT5 or umT5 with its tokenizer.
    """

    model: str = "umt5-base"


class TextEmbeddingUmt5(text_embedding.TextEmbedding):
    """Token states of every caption variant, little-endian float16 [tokens, 768], unpadded."""

    Params = TextEmbeddingUmt5Params

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the encoder and its tokenizer."""
        base.Stage.setup(self, weights)
        from stages.nets.umt5 import UMT5  # here because transformers takes seconds to import

        self._encode = UMT5.load(weights[self.params.model].path, self.params.max_tokens, self.device)
