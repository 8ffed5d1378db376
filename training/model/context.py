"""What the steps of a song share: masks, positions, and the condition as each block sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from training.model.rotary import Rotary


class Condition(NamedTuple):
    """The condition tokens before a block has projected them."""

    states: Tensor  # [B, L, D]
    rotary: Rotary


class KeyValue(NamedTuple):
    """The condition tokens as a block's cross-attention reads them, both [B, heads, L, head_dim]."""

    key: Tensor  # turned by its position
    value: Tensor


@dataclass(frozen=True)
class SequenceInfo:
    """What all blocks see besides their hidden states. Masks are boolean; None is a mask without padding."""

    frame_mask: Tensor | None  # [B, T]
    mixing_mask: Tensor | None  # [B, T]: the frames that convolutions and statistics see
    rotary: Rotary
    condition_mask: Tensor | None  # [B, L]
    attending: Tensor | None  # [B, T]: the frames that see any condition token

    @classmethod
    def of(cls, frame_mask: Tensor, condition_mask: Tensor, rotary: Rotary, *, compat: bool) -> "SequenceInfo":
        """From boolean masks [B, T] and [B, L], without asking a device what they hold."""
        attending = frame_mask & condition_mask.any(-1, keepdim=True)
        return cls(frame_mask, None if compat else frame_mask, rotary, condition_mask, attending)

    def without_needless_masks(self) -> "SequenceInfo":
        """Masks that hide nothing become None: they cost nothing then, and attention may take its fastest kernel."""
        return self._with_masks(lambda mask: None if mask.all() else mask)

    def select(self, items: slice) -> "SequenceInfo":
        """Those of some items of the batch."""
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
    """All that `velocity` needs of a song besides its latents and the time: see the transformer's `prepare`.

    Attributes:
        around: masks and positions.
        key_values: one a block. They weigh 2 L D numbers a block and item: 300 MB at 1,200 tokens of the released model
            in bfloat16.
    """

    around: SequenceInfo
    key_values: Sequence[KeyValue]

    def select(self, items: slice) -> "Context":
        """The context of some items of the batch, sharing memory with this one."""
        key_values = [KeyValue(key[items], value[items]) for key, value in self.key_values]
        return Context(self.around.select(items), key_values)
