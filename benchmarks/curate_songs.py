"""Real tracks for the benchmark of curation: short ones from the model store, also under several names."""

from itertools import islice
from pathlib import Path

import av
import numpy as np

from pipeline.models.store import ModelStore
from stages import pcm
from stages.decode import decode_file

ENTRIES = ("demo-songs", "demo-music", "bench-music")
_LONGEST_S = 40.0  # the songs of two minutes would be half of the corpus


def tracks(store: ModelStore, count: int) -> list[Path]:
    """The first tracks of up to 40 s, including those with vocals; pulls the entries if needed."""
    files = (path for entry in ENTRIES for path in sorted(store.pull(entry).path.rglob("*")) if path.is_file())
    return list(islice((path for path in files if _seconds(path) <= _LONGEST_S), count))


def linked(tracks: list[Path], folder: Path, times: int = 1) -> Path:
    """A folder with every track under several names."""
    folder.mkdir()
    for number in range(times):
        for track in tracks:
            (folder / f"{number} {track.name}").symlink_to(track)
    return folder


def excerpt(track: Path, folder: Path, seconds: float) -> Path:
    """A folder with the beginning of a track."""
    folder.mkdir()
    decoded = decode_file(str(track), {"pcm"})
    frames = np.frombuffer(decoded.pcm, "<i2").reshape(-1, pcm.CHANNELS)[: round(seconds * pcm.RATE_HZ)]
    with av.open(str(folder / "excerpt.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=pcm.RATE_HZ, layout="stereo")
        frame = av.AudioFrame.from_ndarray(frames.reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = pcm.RATE_HZ
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return folder


def _seconds(path: Path) -> float:
    try:
        with av.open(str(path)) as container:
            return (container.duration or 0) / av.time_base
    except av.FFmpegError:
        return float("inf")  # a licence, say
