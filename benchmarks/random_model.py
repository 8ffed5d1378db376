"""Models of the released architecture with random weights, created on their device: no checkpoint is needed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

from stages.nets.codec.codec import AUTOENCODER
from training.model import ACEStepTransformer2DModel, ADaMoSHiFiGANV1, MusicDCAE
from training.sampling.conditions import Conditions

TEXT_TOKENS = 64
LYRIC_TOKENS = 512  # a song of three minutes or so; the same for all durations, so that they compare

# Arguments of the transformer, where they differ from the released ones.
TRANSFORMERS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "num_layers": 2,
        "inner_dim": 32,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "ssl_encoder_depths": (1, 1),
        "lyric_hidden_size": 64,
    },
    "small": {"num_layers": 12, "inner_dim": 768, "num_attention_heads": 6},
    "released": {},
}

_TINY_AUTOENCODER = {
    "attention_head_dim": 8,
    "encoder_block_out_channels": [8, 8, 16, 16],
    "decoder_block_out_channels": [8, 8, 16, 16],
    "encoder_layers_per_block": [1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1, 1],
}
_TINY_VOCODER = {
    "depths": (1, 1, 1, 1),
    "dims": (16, 16, 16, 32),
    "num_mels": 32,
    "upsample_initial_channel": 128,
    "resblock_kernel_sizes": (3,),
    "resblock_dilation_sizes": ((1, 3),),
}

_OF_CONDITIONS_AND_LOSS = ("speaker", "genre", "lyric", "projectors")


def dtype_on(device: torch.device) -> torch.dtype:
    """The sampler's default dtype on a device."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def transformer(size: str, device: torch.device, *, compiled: bool = False) -> ACEStepTransformer2DModel:
    """One of `TRANSFORMERS`, compiled as in `Sampler.from_pretrained`."""
    with _made_on(device, dtype_on(device)):
        model = ACEStepTransformer2DModel(**TRANSFORMERS[size]).eval()
    if compiled:
        model.compile_repeated_blocks(dynamic=True)
    return model


def codec(size: str, device: torch.device) -> MusicDCAE:
    """The released codec, or a tiny one; its vocoder is float32, as in a loaded checkpoint."""
    tiny = size == "tiny"
    with _made_on(device, dtype_on(device)):
        autoencoder = AutoencoderDC(**AUTOENCODER | (_TINY_AUTOENCODER if tiny else {}))
    with _made_on(device, torch.float32):
        vocoder = ADaMoSHiFiGANV1(**_TINY_VOCODER if tiny else {})
    return MusicDCAE.from_parts(autoencoder, vocoder).eval()


def conditions(config: Mapping[str, Any], device: torch.device) -> Conditions:
    """Conditions of one song, with a weakened text for the default guidance."""
    with _made_on(device, dtype_on(device)):
        text = torch.randn(2, 1, TEXT_TOKENS, config["text_embedding_dim"])
        return Conditions(
            text=text[0],
            text_mask=torch.ones(1, TEXT_TOKENS),
            speaker=torch.zeros(1, config["speaker_embedding_dim"]),
            lyrics=torch.randint(config["lyric_encoder_vocab_size"], (1, LYRIC_TOKENS)),
            lyric_mask=torch.ones(1, LYRIC_TOKENS),
            text_null=text[1],
        )


def parameters(size: str) -> tuple[int, int]:
    """Numbers of parameters of the transformer: all, and those that `velocity` uses; nothing is allocated."""
    with torch.device("meta"):
        model = ACEStepTransformer2DModel(**TRANSFORMERS[size])
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return sum(counts.values()), sum(n for name, n in counts.items() if not name.startswith(_OF_CONDITIONS_AND_LOSS))


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Create tensors and modules in the body on a device, with a dtype, and identically every time."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.manual_seed(1)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
