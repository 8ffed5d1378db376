"""The transformer's two attentions: linear over the frames, softmax over the condition."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.rotary import Rotary, rotate

_EPS = 1e-15


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """ReLU attention without softmax (Katharopoulos et al., arXiv 2006.16236; Sana, arXiv 2410.10629, section 2.2).

    All [B, heads, T, d]; returns [B, heads, T, d] in the dtype of `query`. Every sum is accumulated in float32, under
    autocast too. The keys meet the values in a state [d, d + 1] whose last column is the normaliser, so time is
    O(T d^2) and memory beyond the inputs O(T d). A frame whose key is 0 is not seen; one whose query is 0 gets 0.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = F.relu(query).float(), F.relu(key).float(), value.float()
        state = k.mT @ F.pad(v, (0, 1), value=1.0)
        weighted, total = (q @ state).split([v.shape[-1], 1], -1)
        return (weighted / (total + _EPS)).to(query.dtype)


class LinearAttention(nn.Module):
    """Self-attention over the frames at a cost linear in their number."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor, frame_mask: Tensor, rotary: Rotary, query_scale: Tensor | None = None) -> Tensor:
        """Frames [B, T, D] with their mask, boolean [B, T], to [B, T, D]; `query_scale` [B] weakens an item's queries.

        Padded frames are neither seen nor see anything: 0 before `to_out`.
        """
        inside = frame_mask[:, None, :, None]
        query = rotate(_heads(_scaled(self.to_q(x), query_scale), self.heads), rotary) * inside
        key = rotate(_heads(self.to_k(x), self.heads), rotary) * inside
        mixed = linear_attention(query, key, _heads(self.to_v(x), self.heads))
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Softmax attention from the frames to the condition tokens, rotary on both sides.

    `add_*` and `to_add_out` are in the released checkpoint, but nothing computes with them: they stay frozen.
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

    def forward(
        self,
        x: Tensor,
        frame_mask: Tensor,
        rotary: Rotary,
        condition: Tensor,
        condition_mask: Tensor,
        condition_rotary: Rotary,
        query_scale: Tensor | None = None,
    ) -> Tensor:
        """Frames [B, T, D] and condition [B, L, D] with their masks, boolean [B, T] and [B, L], to [B, T, D].

        A padded frame, or one of an item without any condition, attends to nothing: 0 before `to_out`.
        `query_scale` [B] weakens an item's queries.
        """
        query = rotate(_heads(_scaled(self.to_q(x), query_scale), self.heads), rotary)
        key = rotate(_heads(self.to_k(condition), self.heads), condition_rotary)
        value = _heads(self.to_v(condition), self.heads)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=condition_mask[:, None, None, :])
        # Filled here and not masked in the kernel: a row of -inf is 0 in some kernels and NaN in others.
        attends = frame_mask & condition_mask.any(-1, keepdim=True)
        mixed = mixed.transpose(1, 2).flatten(2).masked_fill(~attends[..., None], 0.0)
        return self.to_out(mixed)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, positions, D] to [B, heads, positions, head_dim]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _scaled(query: Tensor, scale: Tensor | None) -> Tensor:
    return query if scale is None else query * scale[:, None, None].to(query.dtype)
