"""FLOPs of the transformer and peak FLOP/s of the machine, for model FLOPs utilisation (MFU)."""

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from training.data.batch import Batch

_TIME_CHANNELS = 256
_PATCH_CHANNELS = 256  # per latent channel
_PRODUCTS, _PRODUCTS_S = 50, 1.0  # a core without bfloat16 takes two seconds for one in that type
_KERNEL = 3  # frames that the Mix-FFN's convolution sees

# Dense bf16 TFLOP/s with float32 accumulation from NVIDIA's data sheets, by CUDA's device name.
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
    """FLOPs of the transformer's `velocity` for one item: two per multiply-add of every matrix product.

    Norms, activations, rotary embeddings and gates are not counted, as is usual: they are memory-bound. Neither is
    what `prepare` computes once per song.

    Args:
        config: the transformer's config.
        frames: latent frames of the item.
        condition_tokens: speaker, text and lyric tokens together.
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
    """FLOPs of a training step on a batch: the forward pass, and twice that for the backward pass.

    Counts each song's own frames and tokens: neither padding nor what gradient checkpointing recomputes is useful
    work. Condition embeddings and encoders and the REPA heads are not counted: a few per cent of the released model.
    """
    frames = batch.frame_mask.sum(1).tolist()
    tokens = (1 + batch.text_mask.sum(1) + batch.lyric_mask.sum(1)).tolist()
    keys_and_values = 2 * config["num_layers"] * 2 * config["inner_dim"] ** 2  # per token, in all blocks
    return 3 * sum(
        velocity_flops(config, song, around) + around * keys_and_values
        for song, around in zip(frames, tokens, strict=True)
    )


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP/s that MFU is relative to: bf16 from the card's data sheet, else a measured matrix product."""
    stated = card_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return stated or matmul_peak(device, dtype)


def card_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of a card by its CUDA name; None if it is not in the table."""
    return CARD_PEAKS[name] * 1e12 if name in CARD_PEAKS else None


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measured FLOP/s of a product of square matrices, the best of up to 50 within a second."""
    size = 8192 if device.type == "cuda" else 1024
    random = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, dtype=dtype, generator=random) for _ in range(2))
    taken: list[float] = []
    while len(taken) < _PRODUCTS and sum(taken) < _PRODUCTS_S:
        taken.append(_seconds(a, b))
    return 2 * size**3 / min(taken)


def synchronize(device: torch.device) -> None:
    """Wait for the device to finish; returns at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    synchronize(a.device)
    started = time.perf_counter()
    a @ b
    synchronize(a.device)
    return time.perf_counter() - started
