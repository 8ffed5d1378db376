"""Presets: the paper's two training stages, a tiny run for a quick look, and settings that fit common cards.

A preset is a partial `TrainConfig`. Several are merged in order, as in `finetune,24gb`; later ones win.
"""

from collections.abc import Mapping, Sequence
from typing import Any

SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "num_layers": 4,
        "inner_dim": 128,
        "attention_head_dim": 32,
        "num_attention_heads": 4,
        "lyric_hidden_size": 64,
    },
    "small": {
        "num_layers": 12,
        "inner_dim": 512,
        "attention_head_dim": 64,
        "num_attention_heads": 8,
        "lyric_hidden_size": 256,
    },
    "released": {},
}

# ACE-Step, arXiv 2506.00045, table 4. A step takes 120 songs there; the card presets split that into batches.
_STAGES: Mapping[str, Mapping[str, Any]] = {
    "pretrain": {
        "steps": 460_000,
        "optimizer": {"lr": 1e-4, "betas": (0.8, 0.9), "weight_decay": 1e-2, "warmup_steps": 4000, "clip": 0.5},
        "objective": {"speaker_dropout": 0.5},
    },
    "finetune": {
        "steps": 240_000,
        "optimizer": {"lr": 1e-4, "betas": (0.8, 0.9), "weight_decay": 1e-2, "warmup_steps": 4000, "clip": 0.5},
        "objective": {
            "speaker_dropout": 1.0,
            "late_ssl_weights": {"m-hubert": 0.01},
            "late_steps": 100_000,
        },
    },
    "tiny": {
        "steps": 300,
        "optimizer": {"lr": 2e-3, "warmup_steps": 20, "decay": "cosine"},
        "data": {"batch_size": 4},
        "model": SIZES["tiny"],
        "log_every": 5,
        "validate_every": 100,
        "save_every": 50,
    },
}

# From the largest to the smallest, for the released size; `songmill train` prints the estimated memory of a run.
CARDS: Mapping[str, Mapping[str, Any]] = {
    "80gb": {
        "precision": "bfloat16",
        "gradient_checkpointing": True,
        "data": {"batch_size": 8},
        "accumulation": 15,
    },
    "24gb": {
        "precision": "bfloat16",
        "gradient_checkpointing": True,
        "lora": {"rank": 256, "alpha": 256, "frozen_precision": "bfloat16"},
        "data": {"batch_size": 4},
        "accumulation": 4,
    },
    "12gb": {
        "precision": "bfloat16",
        "gradient_checkpointing": True,
        "lora": {"rank": 64, "alpha": 64, "frozen_precision": "bfloat16"},
        "data": {"batch_size": 1},
        "accumulation": 16,
    },
    "8gb": {
        "precision": "bfloat16",
        "gradient_checkpointing": True,
        "lora": {"rank": 16, "alpha": 16, "frozen_precision": "bfloat16"},
        "data": {"batch_size": 1, "max_frames_per_song": 1292, "max_lyric_ids": 1024},
        "accumulation": 16,
    },
}

PRESETS: Mapping[str, Mapping[str, Any]] = {**_STAGES, **CARDS}


def deep_merge(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings; later values replace earlier ones, and an empty mapping clears a nested one."""
    merged: dict[str, Any] = {}
    for layer in settings:
        for name, value in layer.items():
            below = merged.get(name)
            if value and isinstance(value, Mapping) and isinstance(below, Mapping):
                merged[name] = deep_merge(below, value)
            else:
                merged[name] = value
    return merged


def next_smaller(presets: Sequence[str]) -> Sequence[str] | None:
    """The presets with the next smaller card; with the largest if they name none. None below the smallest."""
    cards = list(CARDS)
    card = next((name for name in reversed(presets) if name in CARDS), None)
    place = cards.index(card) + 1 if card else 0
    if place == len(cards):
        return None
    return [*(name for name in presets if name not in CARDS), cards[place]]
