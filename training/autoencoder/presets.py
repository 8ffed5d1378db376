"""Sizes of the autoencoder and settings that go together."""

from collections.abc import Mapping
from typing import Any

SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        # The first stage has no layers: the spectrogram is halved at once, which saves most of the work.
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
