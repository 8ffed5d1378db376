"""multilingual-e5-small as a token encoder: a BERT of 384-d states that reads about a hundred languages.

Wang et al., "Multilingual E5 Text Embeddings: A Technical Report", 2024.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

# What the model card asks for where the states are features and not the documents of a search.
PREFIX = "query: "

_VOCABULARY = "embeddings.word_embeddings.weight"


class E5:
    """Token states of a text."""

    def __init__(self, model: BertModel, tokenizer: Tokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> "E5":
        """The encoder of a folder with `model.safetensors`, `config.json`, `tokenizer.json`; longer texts are cut."""
        model = BertModel(BertConfig(**json.loads((folder / "config.json").read_text())), add_pooling_layer=False)
        weights = load_file(folder / "model.safetensors")
        # Looking words up needs no arithmetic: the vocabulary, four fifths of the parameters, stays in float16.
        model.load_state_dict(
            {name: tensor if name == _VOCABULARY else tensor.float() for name, tensor in weights.items()}, assign=True
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(max_tokens)
        return cls(model.eval(), tokenizer)

    @torch.inference_mode()
    def __call__(self, text: str) -> np.ndarray:
        """Float32 states [tokens, 384] of the prefixed text, its opening and closing tokens included."""
        ids = torch.tensor([self._tokenizer.encode(PREFIX + text).ids])
        return self._model(ids).last_hidden_state[0].numpy()
