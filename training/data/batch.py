"""A padded batch of songs with precomputed features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Songs of similar length, padded at the end. B songs, T latent frames.

    Attributes:
        latents: float32 [B, C, bins, T], 0 on padding.
        frame_mask: bool [B, T], false on padding.
        text: float32 [B, L, text dim], states of the text encoder.
        text_mask: bool [B, L].
        speaker: float32 [B, speaker dim], zeros where a song has none.
        lyrics: int64 [B, Ll].
        lyric_mask: bool [B, Ll].
        ssl: encoder -> each song's targets, float32 [frames, dim]: unit-norm states, averaged over each latent frame or
            at the encoder's own rate.
        ssl_rate_hz: encoder -> frame rate of its targets.
        track_ids: ids of the B songs.
        seconds: seconds of audio, without padding.
    """

    latents: Tensor
    frame_mask: Tensor
    text: Tensor
    text_mask: Tensor
    speaker: Tensor
    lyrics: Tensor
    lyric_mask: Tensor
    ssl: Mapping[str, Sequence[Tensor]]
    ssl_rate_hz: Mapping[str, float]
    track_ids: Sequence[str]
    seconds: float

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        moved["ssl"] = {
            name: [item.to(device, non_blocking=True) for item in items] for name, items in self.ssl.items()
        }
        return replace(self, **moved)
