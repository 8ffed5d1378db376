"""The transformer's two attentions: linear over the frames, softmax over the condition."""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.context import Condition, KeyValue, SequenceInfo
from training.model.linear_attention import attend_in_torch
from training.model.rotary import Rotary, rotate

_HAS_TRITON = torch.version.cuda is not None and find_spec("triton") is not None


class LinearAttention(nn.Module):
    """Self-attention over the frames at a cost linear in their number."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor, around: SequenceInfo, query_scale: Tensor | None = None) -> Tensor:
        """Frames [B, T, D] to [B, T, D]; `query_scale` [B] weakens an item's queries.

        Padded frames neither attend nor are attended to; their output is 0 before `to_out`.
        """
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1))
            for projected in (_scaled(self.to_q(x), query_scale), self.to_k(x), self.to_v(x))
        )
        return self.to_out(_attend_linearly(query, key, value, around.rotary, around.frame_mask).flatten(2))


def _attend_linearly(query: Tensor, key: Tensor, value: Tensor, rotary: Rotary, frame_mask: Tensor | None) -> Tensor:
    """Linear attention by the Triton kernel if it supports this device and size, else by `attend_in_torch`."""
    if _HAS_TRITON and query.is_cuda:
        from training.model import linear_attention_kernel as kernel

        if kernel.takes(query):
            return kernel.attend(query, key, value, rotary, frame_mask)
    return attend_in_torch(query, key, value, rotary, frame_mask)


class CrossAttention(nn.Module):
    """Softmax attention from the frames to the condition tokens, rotary on both sides.

    `add_*` and `to_add_out` are in the released checkpoint but unused, and stay frozen.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))
        self.add_q_proj = nn.Linear(dim, dim).requires_grad_(False)
        self.add_k_proj = nn.Linear(dim, dim).requires_grad_(False)
        self.add_v_proj = nn.Linear(dim, dim).requires_grad_(False)
        self.to_add_out = nn.Linear(dim, dim).requires_grad_(False)

    def project(self, condition: Condition) -> KeyValue:
        """Keys and values of the condition tokens."""
        key = rotate(_heads(self.to_k(condition.states), self.heads), condition.rotary)
        return KeyValue(key, _heads(self.to_v(condition.states), self.heads))

    def forward(self, x: Tensor, memory: KeyValue, around: SequenceInfo, query_scale: Tensor | None = None) -> Tensor:
        """Frames [B, T, D] to [B, T, D]; `query_scale` [B] weakens an item's queries.

        A padded frame, or one of an item without any condition, attends to nothing; its output is 0 before `to_out`.
        """
        query = rotate(_heads(_scaled(self.to_q(x), query_scale), self.heads), around.rotary)
        visible = None if around.condition_mask is None else around.condition_mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, memory.key, memory.value, attn_mask=visible)
        mixed = mixed.transpose(1, 2).flatten(2)
        if around.attending is not None:
            # Filled here instead of masked in the kernel: a row of -inf gives 0 in some kernels and NaN in others.
            mixed = mixed.masked_fill(~around.attending[..., None], 0.0)
        return self.to_out(mixed)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, positions, D] to [B, heads, positions, head_dim]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _scaled(query: Tensor, scale: Tensor | None) -> Tensor:
    return query if scale is None else query * scale[:, None, None].to(query.dtype)
