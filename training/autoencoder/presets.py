"""Model sizes and presets for the autoencoder."""

from collections.abc import Mapping
from typing import Any

SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        # The first stage has no layers: the spectrogram is halved right away, which saves most of the computation.
        "encoder_block_out_channels": (16, 16, 32, 64),
        "decoder_block_out_channels": (16, 16, 32, 64),
        "encoder_layers_per_block": (0, 1, 1, 1),
        "decoder_layers_per_block": (0, 1, 1, 1),
        "encoder_qkv_multiscales": ((), (), (), (5,)),
        "decoder_qkv_multiscales": ((), (), (), (5,)),
        "upsample_block_type": "pixel_shuffle",
    },
    "released": {},
}

_WARM = {"warmup_steps": 20, "decay": "cosine", "betas": (0.9, 0.95), "clip": 1.0}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Takes a minute and a half on two CPU cores. So few steps would not train a discriminator: there is no `head`.
    "tiny": {
        "model": SIZES["tiny"],
        "linear_start": True,
        "full": {"steps": 500, "excerpt_s": 1.5, "batch_size": 4, "optimizer": {"lr": 3e-3, **_WARM}},
        "middle": {"steps": 60, "excerpt_s": 6.0, "batch_size": 1, "optimizer": {"lr": 5e-4, **_WARM}},
        "adversarial": {"channels": 16},
        "data": {"validation_share": 0.15, "validation_s": 3.0, "validation_excerpts": 8},
        "log_every": 5,
        "validate_every": 70,
        "save_every": 140,
    },
    # 140,000 steps as ACE-Step's autoencoder (arXiv 2506.00045, table 4); their division into phases follows DC-AE.
    "released": {
        "full": {"steps": 100_000, "excerpt_s": 3.0, "batch_size": 32},
        "middle": {"steps": 20_000, "excerpt_s": 24.0, "batch_size": 4},
        "head": {"steps": 20_000, "excerpt_s": 3.0, "batch_size": 16},
        "precision": "bfloat16",
    },
}
