"""What pretrained text encoders have in common: texts in, one state per token out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn


class TokenEncoder(ABC):
    """A transformers encoder with its tokenizer; longer texts are truncated.

    Attributes:
        prefix: prepended to every text.
        max_tokens: most tokens of a text that are read, including the prefix and special tokens.
    """

    prefix: ClassVar[str] = ""

    def __init__(self, model: Any, tokenizer: Tokenizer, max_tokens: int) -> None:
        """Combine a model and its tokenizer.

        Raises:
            ValueError: the tokenizer has more tokens than the model.
        """
        if (tokens := tokenizer.get_vocab_size()) > model.config.vocab_size:
            raise ValueError(f"the tokenizer has {tokens} tokens, the model {model.config.vocab_size}")
        self.max_tokens = max_tokens
        self._model = model.eval()
        self._tokenizer = tokenizer
        tokenizer.enable_truncation(max_tokens)
        tokenizer.enable_padding(pad_id=model.config.pad_token_id)

    @property
    def dim(self) -> int:
        """Dimension of a state."""
        return self._model.config.hidden_size

    @property
    @abstractmethod
    def queries(self) -> list[nn.Module]:
        """Query projection of every block, first to last."""

    def __call__(self, text: str) -> np.ndarray:
        """Float32 states [tokens, dim] of the prefixed text, including its special tokens."""
        return self.encode([text])[0][0].numpy()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode a batch of texts.

        Returns:
            Float32 states [B, L, dim], zeros on padding, and their mask, int64 [B, L], 0 on padding; on the CPU.
        """
        readings = self._tokenizer.encode_batch([self.prefix + text for text in texts])
        ids = torch.tensor([reading.ids for reading in readings])
        mask = torch.tensor([reading.attention_mask for reading in readings])
        device = self._model.device
        states = self._model(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state.cpu()
        return states.masked_fill(mask[..., None] == 0, 0.0), mask

    def count_tokens(self, text: str) -> int:
        """Tokens of a whole text, including the prefix, special tokens and whatever would be truncated."""
        reading = self._tokenizer.encode(self.prefix + text)
        return len(reading.ids) + sum(part.special_tokens_mask.count(0) for part in reading.overflowing)
