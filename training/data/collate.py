"""From stored rows to a padded batch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from schemas import ssl_codec
from schemas.columns import LATENT_FRAME
from stages.nets.codec.codec import LATENT_HZ
from training.data.batch import Batch
from training.data.config import DataConfig
from training.data.rows import Row
from training.data.song_index import Widths

_FRAME_BYTES = 2 * math.prod(LATENT_FRAME)  # of float16


@dataclass(frozen=True)
class Crop:
    """The part of a song that one epoch uses; it depends on the seed, the epoch and the song, not on its batch.

    Attributes:
        start: first latent frame.
        frames: length in latent frames.
        text: position in 0..1 among the caption variants.
    """

    start: int
    frames: int
    text: float

    @classmethod
    def draw(cls, key: int, frames: int, epoch: int, config: DataConfig) -> "Crop":
        """Draw the crop of a song with `frames` latent frames; `key` is the song's number in the index."""
        where, text = np.random.default_rng([config.seed, epoch, key]).random(2)
        taken = min(frames, config.max_frames_per_song)
        return cls(int(where * (frames - taken + 1)), taken, float(text))


@dataclass(frozen=True)
class Sample:
    """One song, ready for a batch.

    Attributes:
        track_id: the song's id.
        latents: float16 [frames, 8, 16].
        text: float16 [tokens, dim], states of the drawn caption variant.
        lyrics: int64 [ids].
        speaker: float32 [dim], or None.
        ssl: encoder -> float32 [frames, dim].
    """

    track_id: str
    latents: np.ndarray
    text: np.ndarray
    lyrics: np.ndarray
    speaker: np.ndarray | None
    ssl: Mapping[str, np.ndarray]


def decode(row: Row, track_id: str, crop: Crop, widths: Widths, config: DataConfig) -> Sample:
    """The crop of a stored song as arrays.

    Raises:
        ValueError: its latents are not finite.
    """
    data = row["latents"]["data"].as_buffer()
    latents = np.frombuffer(data.slice(crop.start * _FRAME_BYTES, crop.frames * _FRAME_BYTES), "<f2")
    latents = latents.reshape(crop.frames, *LATENT_FRAME).copy()  # a view would keep its whole row group
    if not np.isfinite(latents).all():
        raise ValueError(f"latents of {track_id} are not finite")
    speaker = row["speaker"].get("embedding")
    lyrics = row["lyric_tokens"].get("ids")
    return Sample(
        track_id=track_id,
        latents=latents,
        text=_text(row, crop.text, config),
        lyrics=_list(lyrics, np.int64)[: config.max_lyric_ids],
        speaker=_list(speaker, np.float32) if speaker.is_valid else None,
        ssl={name: _states(row["ssl"][name], crop, dim, widths.ssl_rate_hz[name]) for name, dim in widths.ssl.items()},
    )


def collate(samples: Sequence[Sample], widths: Widths) -> Batch:
    """Pad samples at the end to the longest of each kind and stack them."""
    latents, frame_mask = _padded([sample.latents for sample in samples], LATENT_FRAME, torch.float32)
    text, text_mask = _padded([sample.text for sample in samples], (widths.text,), torch.float32)
    lyrics, lyric_mask = _padded([sample.lyrics for sample in samples], (), torch.int64)
    silent = np.zeros(widths.speaker, np.float32)
    speakers = [silent if sample.speaker is None else sample.speaker for sample in samples]
    return Batch(
        latents=latents.permute(0, 2, 3, 1).contiguous(),
        frame_mask=frame_mask,
        text=text,
        text_mask=text_mask,
        speaker=torch.from_numpy(np.stack(speakers)),
        lyrics=lyrics,
        lyric_mask=lyric_mask,
        ssl={name: _joined([sample.ssl[name] for sample in samples]) for name in widths.ssl},
        ssl_rate_hz=dict(widths.ssl_rate_hz),
        track_ids=[sample.track_id for sample in samples],
        seconds=sum(len(sample.latents) for sample in samples) / LATENT_HZ,
    )


def _text(row: Row, place: float, config: DataConfig) -> np.ndarray:
    allowed = config.text_variants
    items = [item for item in row["text_embedding"] if not allowed or item["variant"].as_py() in allowed]
    item = items[int(place * len(items))]
    states = np.frombuffer(item["data"].as_buffer(), "<f2").reshape(-1, item["dim"].as_py())
    return states[: config.max_text_tokens].copy()


def _states(stored: Row, crop: Crop, dim: int, rate_hz: float) -> np.ndarray:
    """The states under the crop's frames; at the latent rate one a frame, or fewer at the song's very end."""
    per_frame = rate_hz / LATENT_HZ
    start, end = (round(frame * per_frame) for frame in (crop.start, crop.start + crop.frames))
    scales = np.frombuffer(stored["scales"].as_buffer(), "<f2")[start:end]
    data = np.frombuffer(stored["data"].as_buffer(), np.int8)[start * dim : end * dim]
    return ssl_codec.decode(scales, data, dim)


def _list(values: pa.ListScalar, dtype: type) -> np.ndarray:
    """Values of an Arrow list, none where it is null."""
    return values.values.to_numpy().astype(dtype) if values.is_valid else np.empty(0, dtype)


def _padded(arrays: Sequence[np.ndarray], inner: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Arrays [n, *inner] as one tensor [B, longest, *inner], 0 behind each, and its mask [B, longest]."""
    lengths = torch.tensor([len(array) for array in arrays])
    longest = max(1, int(lengths.max()))
    tensor = torch.zeros(len(arrays), longest, *inner, dtype=dtype)
    for target, array in zip(tensor.numpy(), arrays, strict=True):
        target[: len(array)] = array
    return tensor, torch.arange(longest) < lengths[:, None]


def _joined(arrays: Sequence[np.ndarray]) -> Sequence[Tensor]:
    """Tensors that share one storage: one shared-memory file a batch instead of one a song."""
    return torch.from_numpy(np.concatenate(arrays)).split([len(array) for array in arrays])
