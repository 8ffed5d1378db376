"""Storage of SSL targets: unit frames, averaged to the latent rate, as int8 directions and float16 lengths.

Representation alignment pulls a projection p of the generator's states towards an encoder's states h by their cosine.
Averaging unit frames preserves that loss: for one p held over n frames, the mean of 1 - cos(p, h_i) is 1 - <p/|p|, m>
with m the mean of h_i/|h_i|. So m must keep its length, which measures how far the frames agree, and must not be
renormalised.
"""

from typing import Any

import numpy as np

_LARGEST = 127


def normalize(states: np.ndarray) -> np.ndarray:
    """States [frames, dim] scaled to unit length, float32; zeros stay zeros."""
    lengths = np.linalg.norm(states.astype(np.float32), axis=1, keepdims=True)
    return _divide(states.astype(np.float32), lengths)


def pool(states: np.ndarray, rate_hz: float, frames: int, frame_rate_hz: float) -> np.ndarray:
    """Mean unit vector of the states under each of `frames` longer frames, float32 [frames, dim].

    A state belongs to the frame that contains its centre, so every state counts once; states after the last frame are
    left out.

    Args:
        states: [n, dim] at `rate_hz`, the first one starting at time 0.
        rate_hz: rate of the states; at least `frame_rate_hz`.
        frames: number of frames to return.
        frame_rate_hz: their rate.

    Raises:
        ValueError: a frame has no state under it.
    """
    centres = (np.arange(len(states)) + 0.5) * (frame_rate_hz / rate_hz)
    bounds = np.searchsorted(centres, np.arange(frames + 1))
    counts = np.diff(bounds)
    if not counts.all():
        raise ValueError(f"{len(states)} states at {rate_hz:g} Hz leave some of {frames} frames empty")
    sums = np.add.reduceat(normalize(states[: bounds[-1]]), bounds[:-1])
    return sums / counts[:, None].astype(np.float32)


def encode(vectors: np.ndarray) -> tuple[bytes, bytes]:
    """Vectors [frames, dim] to `scales` (their lengths, little-endian float16) and `data` (int8, time-major).

    Each vector's largest component takes the whole int8 range, whatever its length.
    """
    vectors = vectors.astype(np.float32)
    peaks = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    data = np.round(_divide(vectors, peaks) * _LARGEST).astype(np.int8)
    scales = np.linalg.norm(vectors, axis=1).astype("<f2")
    return scales.tobytes(), data.tobytes()


def decode(scales: Any, data: Any, dim: int) -> np.ndarray:
    """The vectors float32 [frames, dim] from what `encode` returned (any buffers)."""
    vectors = np.frombuffer(data, np.int8).reshape(-1, dim).astype(np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))  # 0 or at least 127, the largest component's
    vectors *= (np.frombuffer(scales, "<f2").astype(np.float32) / np.maximum(lengths, 1))[:, None]
    return vectors


def _divide(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(values, by, out=np.zeros_like(values), where=by > 0)
