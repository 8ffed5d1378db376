"""Linear attention as two Triton kernels, which fuse rotary embedding, mask, ReLU, sums and division.

The first sums keys and values into a state [d, d] and a normaliser [d]. Each program handles a part of the song, so
that a batch of one fills a large GPU; the parts are added in a fixed order, so that results are reproducible. The
second applies the state to each frame's query. Sums are float32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from training.model.linear_attention import EPS
from training.model.rotary import Rotary

_PROGRAMS = 132  # of the first kernel, at least: the multiprocessors of an H100
_BLOCK = 32  # frames at once: with more, registers spill at heads of 128 channels
_SIZES = (16, 32, 64, 128)


def takes(query: Tensor) -> bool:
    """Whether the kernels support the dtype and head size of a query [B, T, heads, d]."""
    return query.dtype in (torch.bfloat16, torch.float16, torch.float32) and query.shape[-1] in _SIZES


def attend(query: Tensor, key: Tensor, value: Tensor, rotary: Rotary, frame_mask: Tensor | None) -> Tensor:
    """The same as `linear_attention.attend_in_torch`; differentiable with respect to query, key and value."""
    cos, sin = (table[0, 0] for table in rotary)
    return _attend(query, key, value, cos, sin, frame_mask)


@torch.library.custom_op("songmill::linear_attention", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, frame_mask: Tensor | None) -> Tensor:
    batch, frames, heads, size = query.shape
    query, key, value, cos, sin = (x.contiguous() for x in (query, key, value, cos, sin))
    # The kernel needs a pointer even without a mask.
    mask = query if frame_mask is None else frame_mask.contiguous().view(torch.uint8)
    options: dict[str, Any] = {
        "masked": frame_mask is not None,
        "size": size,
        "block": _BLOCK,
        "precision": "tf32x3" if query.dtype == torch.float32 else "tf32",  # TF32 represents 16-bit floats exactly
        "num_warps": 8 if size == 128 else 4,
        "num_stages": 1,  # more do not fit into the shared memory of a small GPU
    }
    blocks = triton.cdiv(frames, _BLOCK)
    parts = min(triton.cdiv(_PROGRAMS, batch * heads), blocks)
    states = query.new_empty(parts, batch * heads, size, size, dtype=torch.float32)
    totals = query.new_empty(parts, batch * heads, size, dtype=torch.float32)
    length = triton.cdiv(blocks, parts) * _BLOCK
    _sum_kernel[(parts, batch * heads)](key, value, cos, sin, mask, states, totals, frames, heads, length, **options)
    out, state, total = torch.empty_like(query), states.sum(0), totals.sum(0)
    _read_kernel[(blocks, batch * heads)](query, cos, sin, mask, state, total, out, frames, heads, eps=EPS, **options)
    return out


_attend.register_fake(lambda query, *_: query.new_empty(query.shape))


@triton.jit
def _turned(x, at, cos, sin, frame, mask, inside, size: tl.constexpr, masked: tl.constexpr):  # type: ignore[no-untyped-def]
    """ReLU of a block of frames [block, size] of one head after rotation, 0 on padded frames.

    As in `rotary.rotate`, adjacent channels are rotated with tables that repeat by halves, and the result is rounded to
    the dtype of `x`. Returned as float32.
    """
    channel = tl.arange(0, size)
    partner = channel ^ 1
    sign = tl.where(channel % 2 == 0, -1.0, 1.0)
    own = tl.load(x + at[:, None] + channel[None], mask=inside[:, None], other=0.0)
    other = tl.load(x + at[:, None] + partner[None], mask=inside[:, None], other=0.0).to(tl.float32)
    angle = frame[:, None] * size + channel[None]
    cosine = tl.load(cos + angle, mask=inside[:, None], other=0.0)
    sine = tl.load(sin + angle, mask=inside[:, None], other=0.0)
    turned = own.to(tl.float32) * cosine + sign[None] * other * sine
    if masked:
        turned = tl.where(tl.load(mask, mask=inside, other=0)[:, None] != 0, turned, 0.0)
    return tl.maximum(turned, 0.0).to(own.dtype).to(tl.float32)


@triton.jit
def _sum_kernel(  # type: ignore[no-untyped-def]
    key,
    value,
    cos,
    sin,
    mask,
    states,
    totals,
    frames,
    heads,
    length,
    masked: tl.constexpr,
    size: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """State [size, size] and normaliser [size] of `length` frames of one head of one item."""
    part, row = tl.program_id(0), tl.program_id(1)
    item, head = (row // heads).to(tl.int64), row % heads
    channel = tl.arange(0, size)
    state = tl.zeros((size, size), tl.float32)
    total = tl.zeros((size,), tl.float32)
    for start in range(part * length, tl.minimum((part + 1) * length, frames), block):
        frame = start + tl.arange(0, block)
        inside = frame < frames
        at = ((item * frames + frame) * heads + head) * size
        k = _turned(key, at, cos, sin, frame, mask + item * frames + frame, inside, size, masked)
        v = tl.load(value + at[:, None] + channel[None], mask=inside[:, None], other=0.0)
        state = tl.dot(tl.trans(k), v.to(tl.float32), state, input_precision=precision)
        total += tl.sum(k, 0)
    row += part * tl.num_programs(1)
    tl.store(states + (row * size + channel[:, None]) * size + channel[None], state)
    tl.store(totals + row * size + channel, total)


@triton.jit
def _read_kernel(  # type: ignore[no-untyped-def]
    query,
    cos,
    sin,
    mask,
    state,
    total,
    out,
    frames,
    heads,
    eps: tl.constexpr,
    masked: tl.constexpr,
    size: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """A block of frames of one head of one item."""
    row = tl.program_id(1)
    item, head = (row // heads).to(tl.int64), row % heads
    channel = tl.arange(0, size)
    frame = tl.program_id(0) * block + tl.arange(0, block)
    inside = frame < frames
    at = ((item * frames + frame) * heads + head) * size
    q = _turned(query, at, cos, sin, frame, mask + item * frames + frame, inside, size, masked)
    weight = tl.sum(q * tl.load(total + row * size + channel)[None], 1) + eps
    held = tl.load(state + (row * size + channel[:, None]) * size + channel[None])
    if precision == "tf32":  # the hardware truncates the last 13 bits; adding half of the last bit kept rounds instead
        held = (held.to(tl.uint32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True)
    mean = tl.dot(q, held, input_precision=precision) / weight[:, None]
    tl.store(out + at[:, None] + channel[None], mean.to(out.dtype.element_ty), mask=inside[:, None])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Manual gradient, recomputing the state: nested autograd would not work under torch.compile."""
    query, key, value, cos, sin, frame_mask, out = ctx.saved_tensors
    tables = cos[:, None], sin[:, None]
    q, k = (_rotated(x.float(), *tables) for x in (query, key))
    if frame_mask is not None:
        q, k = (x * frame_mask[:, :, None, None] for x in (q, k))
    q_seen, k_seen = q > 0, k > 0
    q, k = q.relu(), k.relu()
    v = value.float()

    state, total = torch.einsum("bthd,bthe->bhde", k, v), k.sum(1)
    weight = torch.einsum("bthd,bhd->bth", q, total)[..., None] + EPS
    upper = gradient.float() / weight
    lower = -(upper * out.float()).sum(-1)
    q_gradient = torch.einsum("bthe,bhde->bthd", upper, state) + lower[..., None] * total[:, None]
    state_gradient = torch.einsum("bthd,bthe->bhde", q, upper)
    total_gradient = torch.einsum("bthd,bth->bhd", q, lower)
    k_gradient = torch.einsum("bthe,bhde->bthd", v, state_gradient) + total_gradient[:, None]
    v_gradient = torch.einsum("bthd,bhde->bthe", k, state_gradient)
    gradients = (_unrotated(q_gradient * q_seen, *tables), _unrotated(k_gradient * k_seen, *tables), v_gradient)
    return *(part.to(query.dtype) for part in gradients), None, None, None


_attend.register_autograd(_backward, setup_context=_keep)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + _quarter_turn(x) * sin


def _unrotated(gradient: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The transpose of `_rotated`, which is not its inverse: the two channels of a pair have different angles."""
    return gradient * cos - _quarter_turn(gradient * sin)


def _quarter_turn(x: Tensor) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-odd, even], -1).flatten(-2)
