"""Real recordings as canonical PCM."""

from functools import cache
from pathlib import Path

import av
import numpy as np

from stages import pcm


@cache
def load(path: Path, seconds: float | None = None) -> bytes:
    """A file decoded to canonical PCM, or its first `seconds`."""
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=pcm.RATE_HZ)
    with av.open(str(path)) as container:
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    audio = np.concatenate([frame.to_ndarray() for frame in [*frames, *resampler.resample(None)]], axis=1)
    return pcm.encode(audio[:, : round(seconds * pcm.RATE_HZ)] if seconds else audio)
