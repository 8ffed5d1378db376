"""What all steps of a song share: masks, positions, and each block's keys and values of the condition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from training.model.rotary import Rotary


class Condition(NamedTuple):
    """The condition tokens, before a block projects them."""

    states: Tensor  # [B, L, D]
    rotary: Rotary


class KeyValue(NamedTuple):
    """A block's keys and values of the condition tokens, both [B, heads, L, head_dim]."""

    key: Tensor  # after rotary embedding
    value: Tensor


@dataclass(frozen=True)
class SequenceInfo:
    """Masks and positions, which all blocks share. Masks are boolean, False on padding; None is all True."""

    frame_mask: Tensor | None  # [B, T]
    mixing_mask: Tensor | None  # [B, T], for convolutions and statistics
    rotary: Rotary
    condition_mask: Tensor | None  # [B, L]
    attending: Tensor | None  # [B, T], frames that can attend to a condition token

    @classmethod
    def of(cls, frame_mask: Tensor, condition_mask: Tensor, rotary: Rotary, *, compat: bool) -> "SequenceInfo":
        """From boolean masks [B, T] and [B, L], without reading them back from a device."""
        attending = frame_mask & condition_mask.any(-1, keepdim=True)
        return cls(frame_mask, None if compat else frame_mask, rotary, condition_mask, attending)

    def without_needless_masks(self) -> "SequenceInfo":
        """Replace masks that hide nothing by None, which saves work and allows attention's fastest kernel."""
        return self._with_masks(lambda mask: None if mask.all() else mask)

    def select(self, items: slice) -> "SequenceInfo":
        """The masks and positions of some items of the batch."""
        return self._with_masks(lambda mask: mask[items])

    def _with_masks(self, change: Callable[[Tensor], Tensor | None]) -> "SequenceInfo":
        def changed(mask: Tensor | None) -> Tensor | None:
            return None if mask is None else change(mask)

        return replace(
            self,
            frame_mask=changed(self.frame_mask),
            mixing_mask=changed(self.mixing_mask),
            condition_mask=changed(self.condition_mask),
            attending=changed(self.attending),
        )


@dataclass(frozen=True)
class Context:
    """All that `velocity` needs besides latents and time: see the transformer's `prepare`.

    Attributes:
        around: masks and positions.
        key_values: one per block, 2 L D numbers per item: 300 MB in all for the released model at 1,200 tokens in
            bfloat16.
    """

    around: SequenceInfo
    key_values: Sequence[KeyValue]

    def select(self, items: slice) -> "Context":
        """The context of some items of the batch, sharing memory with this one."""
        key_values = [KeyValue(key[items], value[items]) for key, value in self.key_values]
        return Context(self.around.select(items), key_values)
