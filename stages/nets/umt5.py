"""umT5 as a token encoder: the encoder half of a T5 for 107 languages, the text encoder of ACE-Step.

Chung et al., "UniMax: Fairer and More Effective Language Sampling for Large-Scale Multilingual Pretraining", 2023.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForTextEncoding
from transformers.utils.logging import disable_progress_bar

from stages.nets.token_encoder import TokenEncoder


class UMT5(TokenEncoder):
    """Token states of a text, by umT5 or its predecessors T5 and mT5, which share its layout."""

    @classmethod
    def load(cls, folder: Path, max_tokens: int, device: str = "cpu") -> "UMT5":
        """Load a folder with safetensors, `config.json`, `tokenizer.json`; longer texts are truncated.

        Raises:
            ValueError: the folder lacks a weight.
        """
        disable_progress_bar()  # loading takes a second, and the command draws progress bars of its own
        model, report = AutoModelForTextEncoding.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, {missing[0]} the first of them")
        # The file itself rather than AutoTokenizer, which rebuilds a T5 tokenizer without its normaliser.
        return cls(model.to(device), Tokenizer.from_file(str(folder / "tokenizer.json")), max_tokens)

    @property
    def queries(self) -> list[nn.Module]:
        """Query projection of every block."""
        return [block.layer[0].SelfAttention.q for block in self._model.encoder.block]
