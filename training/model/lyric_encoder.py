"""The lyric encoder: a conformer (Gulati et al., arXiv 2005.08100) without macaron halves and convolution module."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_LAYERS = 6
_HEADS = 16
_FEED_FORWARD = 4096
_DROPOUT = 0.1
_ROWS = 128  # rows of attention scores computed at a time


class LyricEncoder(nn.Module):
    """Six layers of full relative-position attention over a song's lyric tokens (ACE-Step, arXiv 2506.00045)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gradient_checkpointing = False  # recompute each layer's activations in the backward pass
        self.embed = _Embed(dim)
        self.encoders = nn.ModuleList(_Layer(dim) for _ in range(_LAYERS))
        self.after_norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor, mask: Tensor, query_scale: Tensor | None = None) -> Tensor:
        """Embedded tokens [B, L, dim] with their mask, boolean [B, L], to [B, L, dim].

        `query_scale` [layers, B] weakens an item's queries in a layer. Padded tokens are not attended to.
        """
        x = self.embed(x)
        positions = _relative_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for index, layer in enumerate(self.encoders):
            weak = None if query_scale is None else query_scale[index]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, positions, mask, weak, use_reentrant=False)
            else:
                x = layer(x, positions, mask, weak)
        return self.after_norm(x)


class _Embed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim, eps=1e-5), nn.Dropout(_DROPOUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) * math.sqrt(x.shape[-1])


class _Layer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_mha = nn.LayerNorm(dim, eps=1e-5)
        self.self_attn = RelativeAttention(dim, _HEADS)
        self.norm_ff = nn.LayerNorm(dim, eps=1e-5)
        self.feed_forward = _FeedForward(dim, _FEED_FORWARD)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, query_scale: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, mask, query_scale)
        return x + self.feed_forward(self.norm_ff(x))


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(dim, hidden)
        self.w_2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_1(x)))


class RelativeAttention(nn.Module):
    """Self-attention that scores content and distance separately (Dai et al., "Transformer-XL", arXiv 1901.02860, 3.3).

    Computed some rows at a time, each of which needs only a window of distances, so that memory grows with L, not L^2.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(dim, dim)
        self.linear_k = nn.Linear(dim, dim)
        self.linear_v = nn.Linear(dim, dim)
        self.linear_out = nn.Linear(dim, dim)
        self.linear_pos = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, dim // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, dim // heads))
        for bias in (self.pos_bias_u, self.pos_bias_v):
            nn.init.xavier_uniform_(bias)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor, query_scale: Tensor | None = None) -> Tensor:
        """Tokens [B, L, dim], sinusoids of the distances L-1 .. -(L-1) [2L-1, dim], mask [B, L] to [B, L, dim]."""
        query = self.linear_q(x)
        if query_scale is not None:
            query = query * query_scale[:, None, None].to(query.dtype)
        query = query.unflatten(-1, (self.heads, -1))
        key, value, distance = (
            projected.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for projected in (self.linear_k(x), self.linear_v(x), self.linear_pos(positions))
        )
        by_content = (query + self.pos_bias_u).transpose(1, 2)
        by_position = (query + self.pos_bias_v).transpose(1, 2) / math.sqrt(key.shape[-1])
        length = x.shape[1]
        mixed = []
        for start in range(0, length, _ROWS):
            rows = slice(start, min(start + _ROWS, length))
            window = distance[:, length - rows.stop : 2 * length - 1 - start]
            bias = _shift(by_position[:, :, rows] @ window.mT)
            # The smallest number instead of -inf: an item without lyrics must not give NaN gradients.
            bias = bias.masked_fill(~mask[:, None, None, :], torch.finfo(bias.dtype).min)
            mixed.append(F.scaled_dot_product_attention(by_content[:, :, rows], key, value, attn_mask=bias))
        seen = torch.cat(mixed, 2).transpose(1, 2).flatten(2) * mask.any(-1)[:, None, None]
        return self.linear_out(seen)


def _relative_positions(length: int, dim: int, device: torch.device) -> Tensor:
    """Sinusoids of the distances length-1 .. -(length-1), float32 [2 length - 1, dim]: sin on even channels."""
    distances = torch.arange(length - 1, -length, -1, device=device, dtype=torch.float32)
    frequencies = torch.exp(torch.arange(0, dim, 2, device=device, dtype=torch.float32) * (-math.log(10_000.0) / dim))
    angles = distances[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def _shift(scores: Tensor) -> Tensor:
    """Scores by distance [B, heads, n, L + n - 1] to scores by token, a view [B, heads, n, L].

    The first row starts at column n - 1 and each further row one column earlier: a view with rows one column shorter.
    """
    rows, distances = scores.shape[-2:]
    if rows == 1:
        return scores
    return scores.flatten(-2)[..., rows - 1 : -1].unflatten(-1, (rows, distances - 1))[..., : distances - rows + 1]
