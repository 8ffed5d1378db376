"""Which weights each phase trains.

Short crops train all weights. Long ones, where attention reaches further, train only the deepest stages. The
adversarial loss is for detail and trains only the last layers, so that latents do not change.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from training.autoencoder.config import PhaseName
from training.autoencoder.model import SpectrogramAutoencoder


def set_phase(model: SpectrogramAutoencoder, phase: PhaseName) -> None:
    """Freeze what a phase does not train. The latents' statistics belong to the encoder: `head` keeps them."""
    model.requires_grad_(phase == "full")
    for part in trained_parts(model, phase):
        part.requires_grad_(True)
    model.train()
    model.latents.train(phase != "head")


def trained_parts(model: SpectrogramAutoencoder, phase: PhaseName) -> Iterator[nn.Module]:
    """The modules that a phase trains, from the encoder's input to the decoder's output."""
    encoder: Any = model.autoencoder.encoder
    decoder: Any = model.autoencoder.decoder
    if phase == "full":
        yield from (encoder, decoder)
    elif phase == "middle":
        yield from (encoder.down_blocks[-1], encoder.conv_out, decoder.conv_in, decoder.up_blocks[-1])
    else:
        finest = next(stage for stage in decoder.up_blocks if len(stage))
        yield from (finest, decoder.norm_out, decoder.conv_out)
