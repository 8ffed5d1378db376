"""Prompts as states of a pretrained text encoder, in a plain and in a weakened reading."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from training.sampling.errors import SamplingError

if TYPE_CHECKING:
    from stages.nets.token_encoder import TokenEncoder

MAX_TOKENS = 256  # the model's longest prompt, the encoder's special tokens included

# Entropy-rectifying guidance on the tag (arXiv 2504.13987): which blocks it weakens, and by what factor.
_WEAKENED_BLOCKS = slice(8, 10)
_TAU = 0.01

_KINDS = ("umt5", "mt5", "t5", "bert")


class TextEncoder(Protocol):
    """Encodes prompts."""

    @property
    def dim(self) -> int:
        """Width of the states."""

    def encode(self, texts: Sequence[str], weakened: bool = False) -> tuple[Tensor, Tensor]:
        """Float32 states [B, L, dim] of a batch of texts and their mask, int64 [B, L], 0 on padding.

        With `weakened`, middle blocks attend almost uniformly to all tokens (entropy-rectifying guidance).
        """


def load_text_encoder(folder: Path) -> "PromptEncoder":
    """The text encoder in a folder of the transformers layout, in float32 on the CPU: a umT5, or E5, a BERT.

    Raises:
        SamplingError: the folder has no text encoder, one of another kind, or a damaged one.
    """
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SamplingError(f"no text encoder at {folder}: its config.json must name a model_type ({error})") from error
    if kind not in _KINDS:
        raise SamplingError(f"the text encoder at {folder} is of type {kind!r}; take one of {', '.join(_KINDS)}")
    try:
        return PromptEncoder(_load(folder, kind))
    # transformers, tokenizers and safetensors raise many types for missing, damaged or mismatched files; tokenizers
    # raises plain Exception.
    except Exception as error:
        raise SamplingError(
            f"the text encoder at {folder} does not load; it needs config.json, tokenizer.json and *.safetensors that"
            f" belong together ({error})"
        ) from error


class PromptEncoder:
    """A token encoder that warns when it cuts a prompt, and can encode with weakened queries."""

    def __init__(self, net: "TokenEncoder") -> None:
        self._net = net

    @property
    def dim(self) -> int:
        """Width of the states."""
        return self._net.dim

    def encode(self, texts: Sequence[str], weakened: bool = False) -> tuple[Tensor, Tensor]:
        """See `TextEncoder`.

        Warns:
            UserWarning: a text is too long and was cut; not repeated for `weakened`.

        Raises:
            SamplingError: the encoder is too shallow to be weakened, or damaged.
        """
        if not weakened:
            self._warn_of_cuts(texts)
        with _weakened(self._queries_to_weaken() if weakened else ()):
            states, mask = self._net.encode(texts)
        if not states.isfinite().all():
            raise SamplingError(
                "the text encoder's states are not finite: its weights are damaged, download them again"
            )
        return states, mask

    def _warn_of_cuts(self, texts: Sequence[str]) -> None:
        for text in texts:
            if (tokens := self._net.count_tokens(text)) > self._net.max_tokens:
                warnings.warn(
                    f"the prompt {text[:40]!r}... has {tokens} tokens; the model reads {self._net.max_tokens},"
                    f" the last {tokens - self._net.max_tokens} are cut",
                    stacklevel=3,
                )

    def _queries_to_weaken(self) -> list[nn.Module]:
        queries = self._net.queries
        if not queries[_WEAKENED_BLOCKS]:
            raise SamplingError(
                f"the text encoder has {len(queries)} blocks, but entropy-rectifying guidance weakens its blocks"
                f" {_WEAKENED_BLOCKS.start} and {_WEAKENED_BLOCKS.stop - 1}: switch it off with use_erg_tag=False"
            )
        return queries[_WEAKENED_BLOCKS]


def _load(folder: Path, kind: str) -> "TokenEncoder":
    # Imported here: transformers takes seconds to import.
    if kind == "bert":
        from stages.nets.e5 import E5

        return E5.load(folder, MAX_TOKENS)
    from stages.nets.umt5 import UMT5

    return UMT5.load(folder, MAX_TOKENS)


@contextmanager
def _weakened(projections: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context, projections output a hundredth of their value, bias included."""
    with ExitStack() as hooks:
        for projection in projections:
            hooks.enter_context(projection.register_forward_hook(lambda _module, _inputs, output: output * _TAU))
        yield
