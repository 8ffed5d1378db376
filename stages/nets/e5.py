"""multilingual-e5-small as a token encoder: a BERT with 384-d states for about a hundred languages.

Wang et al., "Multilingual E5 Text Embeddings: A Technical Report", 2024.
"""

import json
from pathlib import Path

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers import BertConfig, BertModel

from stages.nets.token_encoder import TokenEncoder

_VOCABULARY = "embeddings.word_embeddings.weight"


class E5(TokenEncoder):
    """Token states [tokens, 384] of a text."""

    prefix = "query: "  # required by the model card where the states are used as features, not as documents of a search

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> "E5":
        """Load a folder with `model.safetensors`, `config.json`, `tokenizer.json`; longer texts are truncated."""
        model = BertModel(BertConfig(**json.loads((folder / "config.json").read_text())), add_pooling_layer=False)
        weights = load_file(folder / "model.safetensors")
        # An embedding lookup needs no arithmetic: the vocabulary, four fifths of the parameters, stays in float16.
        model.load_state_dict(
            {name: tensor if name == _VOCABULARY else tensor.float() for name, tensor in weights.items()}, assign=True
        )
        return cls(model, Tokenizer.from_file(str(folder / "tokenizer.json")), max_tokens)

    @property
    def queries(self) -> list[nn.Module]:
        """Query projection of every layer."""
        return [layer.attention.self.query for layer in self._model.encoder.layer]
