"""Arithmetic of the transformer and of the machine it runs on: what share of its peak a run gets out of it."""

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from training.data.batch import Batch

_TIME_CHANNELS = 256
_PATCH_CHANNELS = 256  # a latent channel
_PRODUCTS, _PRODUCTS_S = 50, 1.0  # a core without bfloat16 takes two seconds for one in that type
_KERNEL = 3  # frames that the Mix-FFN's convolution sees

# Dense bf16 TFLOP/s with float32 accumulation of NVIDIA's data sheets, by the name that CUDA gives.
CARD_PEAKS = {
    "NVIDIA H200": 989,
    "NVIDIA H200 NVL": 835,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA GeForce RTX 4090": 165,
}


def velocity_flops(config: Mapping[str, Any], frames: int, condition_tokens: int) -> int:
    """FLOPs of the transformer's `velocity` for one item: two a multiply-add of every product of matrices.

    Norms, activations, rotations and gates are left out, as in every such count: they are bound by memory. What
    `prepare` does once a song is left out too.
    """
    dim, head_dim = config["inner_dim"], config["attention_head_dim"]
    bins, hidden = config["max_height"], int(dim * config["mlp_ratio"])
    patch = _PATCH_CHANNELS * config["in_channels"]
    embedding = frames * (config["in_channels"] * bins * patch + patch * dim)
    modulation = _TIME_CHANNELS * dim + dim * dim + dim * 6 * dim
    linear_attention = frames * (4 * dim * dim + 2 * dim * (head_dim + 1))  # the state [d, d + 1]: written, then read
    cross_attention = frames * (2 * dim * dim + 2 * condition_tokens * dim)
    mix_ffn = frames * (dim * 2 * hidden + _KERNEL * 2 * hidden + hidden * dim)
    blocks = config["num_layers"] * (linear_attention + cross_attention + mix_ffn)
    return 2 * (embedding + modulation + blocks + frames * dim * bins * config["out_channels"])


def training_flops(config: Mapping[str, Any], batch: Batch) -> int:
    """FLOPs that a training step on a batch needs: forth, and twice that back.

    Of each song's own frames and tokens: padding is work that nobody needs, and so is what gradient checkpointing
    computes again. What happens once to a token before the blocks, and the REPA heads, are left out: a few per cent
    of the released model.
    """
    frames = batch.frame_mask.sum(1).tolist()
    tokens = (1 + batch.text_mask.sum(1) + batch.lyric_mask.sum(1)).tolist()
    keys_and_values = 2 * config["num_layers"] * 2 * config["inner_dim"] ** 2  # of a token, in all blocks
    return 3 * sum(
        velocity_flops(config, song, around) + around * keys_and_values
        for song, around in zip(frames, tokens, strict=True)
    )


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that MFU is a share of: the card's of its data sheet, in bf16; else the machine's own, measured once."""
    stated = card_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return stated or matmul_peak(device, dtype)


def card_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of a card, None for one that is not in the table."""
    return CARD_PEAKS[name] * 1e12 if name in CARD_PEAKS else None


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the machine's own product of square matrices, the best of up to 50 within a second."""
    size = 8192 if device.type == "cuda" else 1024
    random = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, dtype=dtype, generator=random) for _ in range(2))
    taken: list[float] = []
    while len(taken) < _PRODUCTS and sum(taken) < _PRODUCTS_S:
        taken.append(_seconds(a, b))
    return 2 * size**3 / min(taken)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    synchronize(a.device)
    started = time.perf_counter()
    a @ b
    synchronize(a.device)
    return time.perf_counter() - started
