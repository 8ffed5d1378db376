"""diffusers' `AutoencoderDC` on spectrograms of any length in constant memory, with the same result as in one piece.

Its outer stages are convolutions and run in overlapping windows. Its deepest stage attends to the whole song (ReLU
linear attention: Cai et al., "EfficientViT", 2023; Chen et al., "Deep Compression Autoencoder", arXiv 2410.10733), but
through one small state per head that is a sum over frames: it is accumulated window by window, then each window reads
it. Only one tensor of the deepest stage is held as a whole, in the released model twice the size of the stereo
waveform.
"""

from collections.abc import Iterable
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import SanaMultiscaleLinearAttention
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC, EfficientViTBlock
from torch import Tensor, nn

from stages.nets.codec.windows import spans, windowed

_CONVOLUTIONS = 2  # of kernel 3 in a residual block
_FADE = 1  # frames


def check_layout(autoencoder: AutoencoderDC) -> None:
    """Check that attention is in the deepest stage only, and normalised as in the released model.

    Raises:
        ValueError: it is not.
    """
    stages = [*autoencoder.encoder.down_blocks[:-1], *autoencoder.decoder.up_blocks[:-1]]
    if any(isinstance(module, EfficientViTBlock) for stage in stages for module in stage.modules()):
        raise ValueError("EfficientViTBlock is supported in the last encoder and decoder stage only")
    for module in autoencoder.modules():
        if isinstance(module, SanaMultiscaleLinearAttention) and module.norm_type != "rms_norm":
            raise ValueError(f"attention normalised by {module.norm_type}, the codec's is rms_norm")


def encode(autoencoder: AutoencoderDC, spectrogram: Tensor, window: int) -> Tensor:
    """Spectrograms [B, channels, bands, frames * 8] to codes [B, latent channels, bands / 8, frames].

    Args:
        autoencoder: of any size; its compression ratio replaces the 8 of the released one in the shapes above.
        spectrogram: in [-1, 1].
        window: frames of the codes that are computed at once.
    """
    encoder: Any = autoencoder.encoder
    local = nn.Sequential(encoder.conv_in, *encoder.down_blocks[:-1])
    reach = _reach(autoencoder.config["encoder_layers_per_block"])
    ratio = autoencoder.spatial_compression_ratio
    hidden = windowed(local, spectrogram, window=window, reach=reach, columns=ratio)
    hidden = _deepest(encoder.down_blocks[-1], hidden, window)

    def project(hidden: Tensor) -> Tensor:
        code = encoder.conv_out(hidden)
        if encoder.out_shortcut:
            code = code + hidden.unflatten(1, (code.shape[1], -1)).mean(dim=2)
        return code

    return windowed(project, hidden, window=window, reach=1)


def decode(autoencoder: AutoencoderDC, code: Tensor, window: int) -> Tensor:
    """Codes [B, latent channels, bands / 8, frames] to spectrograms [B, channels, bands, frames * 8]: see `encode`."""
    decoder: Any = autoencoder.decoder

    def expand(code: Tensor) -> Tensor:
        hidden = decoder.conv_in(code)
        if decoder.in_shortcut:
            hidden = hidden + code.repeat_interleave(decoder.in_shortcut_repeats, dim=1)
        return hidden

    def render(hidden: Tensor) -> Tensor:
        for stage in reversed(decoder.up_blocks[:-1]):
            hidden = stage(hidden)
        hidden = decoder.norm_out(hidden.movedim(1, -1)).movedim(-1, 1)
        return decoder.conv_out(decoder.conv_act(hidden))

    hidden = windowed(expand, code, window=window, reach=1)
    hidden = _deepest(decoder.up_blocks[-1], hidden, window)
    reach = _reach(autoencoder.config["decoder_layers_per_block"])
    return windowed(render, hidden, window=window, reach=reach, fade=_FADE)


def _reach(layers_per_block: list[int]) -> int:
    """Receptive field of the stages around the deepest one, to each side, in frames of the deepest stage."""
    *outer, _ = layers_per_block
    reach = 1 / 2 ** len(outer)
    for level, layers in enumerate(reversed(outer), start=1):
        # A resampling convolution counts at the coarser of its two rates: it may sit before or after the rate change.
        reach += _CONVOLUTIONS * layers / 2**level + 1 / 2 ** (level - 1)
    return ceil(reach)


def _deepest(stage: Iterable[nn.Module], hidden: Tensor, window: int) -> Tensor:
    for block in stage:
        if isinstance(block, EfficientViTBlock):
            hidden = _attend(block.attn, hidden, window)
            hidden = windowed(block.conv_out, hidden, window=window, reach=1)
        else:
            hidden = windowed(block, hidden, window=window, reach=_CONVOLUTIONS)
    return hidden


def _attend(attention: SanaMultiscaleLinearAttention, hidden: Tensor, window: int) -> Tensor:
    """[B, channels, bands, frames] to the same; every position attends to every other."""
    scales: Any = attention.to_qkv_multiscale
    reach = max((scale.proj_in.kernel_size[0] // 2 for scale in scales), default=0)
    state: Tensor | None = None
    for low, start, stop, high in spans(hidden.shape[-1], window, reach, reach):
        _, key, value = _heads(attention, hidden[..., low:high])
        inner = slice(start - low, stop - low)
        part = torch.einsum("bhdyt,bheyt->bhde", value[..., inner], key[..., inner])
        state = part if state is None else state + part

    def read(hidden: Tensor) -> Tensor:
        query, _, _ = _heads(attention, hidden)
        sums = torch.einsum("bhde,bheyt->bhdyt", state, query)
        mean = (sums[:, :, :-1] / (sums[:, :, -1:] + attention.eps)).flatten(1, 2).to(hidden.dtype)
        return hidden + attention.norm_out(attention.to_out(mean.movedim(1, -1))).movedim(-1, 1)

    return windowed(read, hidden, window=window, reach=reach)


def _heads(attention: SanaMultiscaleLinearAttention, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, float32 [B, heads of all scales, size, bands, frames]; values end in a row of ones."""
    channels_last = hidden.movedim(1, -1)
    projections = (attention.to_q, attention.to_k, attention.to_v)
    qkv = torch.cat([project(channels_last) for project in projections], dim=-1).movedim(-1, 1)
    scales = torch.cat([qkv, *(scale(qkv) for scale in attention.to_qkv_multiscale)], dim=1).float()
    query, key, value = scales.unflatten(1, (-1, 3, attention.attention_head_dim)).unbind(2)
    return F.relu(query), F.relu(key), F.pad(value, (0, 0, 0, 0, 0, 1), value=1.0)
