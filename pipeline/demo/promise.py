"""The results that the demo promises, and whether a run produced them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from pipeline.dataset.stats import connect
from pipeline.errors import DataProblem
from schemas.dataset import Layout

_SILENT_RMS = 1e-3  # -60 dBFS
_ROUNDING_S = 0.1  # a song's length is rounded to whole latent frames


@dataclass(frozen=True)
class Verdict:
    """The verdict on a row; a kept one has neither stage nor reason."""

    status: str
    stage: str | None = None
    reason: str | None = None

    def __str__(self) -> str:
        return self.status + (f" by {self.stage} ({self.reason})" if self.stage else "")


KEPT = Verdict("kept")


@dataclass(frozen=True)
class Promise:
    """The expected results for the demo's songs.

    Attributes:
        verdicts: file name -> verdict on its row.
        lyrics: file name -> the library song that it is recognised as; no other row is recognised.
        copies: file name -> another file with the same bytes. Which of the two is kept depends on the folder's path.
    """

    verdicts: Mapping[str, Verdict]
    lyrics: Mapping[str, str]
    copies: Mapping[str, str] = field(default_factory=dict)


PROMISE = Promise(
    verdicts={
        "static_in_the_air.mp3": KEPT,
        "fuwafuwa.mp3": KEPT,
        "happy_electronic_1.opus": KEPT,
        "calm_acoustic_1.opus": KEPT,
        "energetic_electronic_2.opus": KEPT,
        "nostalgic_acoustic_s411.opus": KEPT,
        "happy_electronic_1_96k.mp3": Verdict("filtered", "dedup", "near_duplicate"),
        "calm_acoustic_1_copy.opus": Verdict("filtered", "dedup", "exact_duplicate"),
        "truncated.mp3": Verdict("failed", "decode", "TruncatedAudio"),
        "notes.wav": Verdict("failed", "decode", "NotAudio"),
    },
    lyrics={"static_in_the_air.mp3": "static_in_the_air", "fuwafuwa.mp3": "fuwafuwa"},
    copies={"calm_acoustic_1_copy.opus": "calm_acoustic_1.opus"},
)


class PromiseBroken(DataProblem):
    """The demo ran, but its results differ from the promised ones."""

    def __init__(self, differences: Sequence[str], dataset: Path) -> None:
        listed = "".join(f"\n  - {difference}" for difference in differences)
        super().__init__(
            f"the results differ from what the demo promises:{listed}\n`songmill quarantine {dataset}` shows what was "
            "turned away, `songmill doctor` what this machine lacks"
        )


def differences_of_dataset(promise: Promise, layout: Layout) -> list[str]:
    """Rows with other verdicts than promised and lyrics that were not found, one sentence each."""
    return [*_rows_apart(promise, _verdicts(layout)), *_lyrics_apart(promise, _lyrics(layout))]


def differences_of_song(song: Path, duration_s: float) -> list[str]:
    """What is wrong with a song: it is not `duration_s` long, cannot be decoded or is silent; one sentence each."""
    try:
        samples, rate = _decoded(song)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:  # IndexError: it has no audio stream
        return [f"{song} cannot be decoded: {error}"]
    problems = []
    found_s = samples.shape[1] / rate
    if abs(found_s - duration_s) > _ROUNDING_S:
        problems.append(f"{song} should be {duration_s:.1f} s long and is {found_s:.1f} s")
    loudness = float(np.sqrt(np.mean(np.square(samples)))) if samples.size else 0.0
    if not loudness >= _SILENT_RMS:  # true for NaN as well
        problems.append(f"{song} is silent: RMS {loudness:.2g} of full scale")
    return problems


def _rows_apart(promise: Promise, found: Mapping[str, tuple[Verdict, str | None]]) -> Iterator[str]:
    found = dict(found)
    for copy, original in promise.copies.items():
        if copy in found and original in found and found[copy][0] == KEPT:
            found[copy], found[original] = found[original], found[copy]
    for name in sorted({*promise.verdicts, *found}):
        promised, (verdict, message) = promise.verdicts.get(name), found.get(name, (None, None))
        if promised != verdict:
            why = f": {message}" if message else ""
            yield f"{name} should be {promised or 'absent'} and is {verdict or 'absent'}{why}"


def _lyrics_apart(promise: Promise, found: Mapping[str, str | None]) -> Iterator[str]:
    for name, song in sorted(found.items()):
        promised = promise.lyrics.get(name)
        if promised != song:
            yield f"{name} should have the lyrics of {promised or 'no song'} and has those of {song or 'no song'}"


def _verdicts(layout: Layout) -> dict[str, tuple[Verdict, str | None]]:
    with connect(layout) as rows:
        query = "select uri, verdict.status, verdict.stage, verdict.reason, verdict.message from {}"
        found = [row for view in ("tracks", "quarantine") for row in rows.sql(query.format(view)).fetchall()]
    return {Path(uri).name: (Verdict(*verdict), message) for uri, *verdict, message in found}


def _lyrics(layout: Layout) -> dict[str, str | None]:
    with connect(layout) as rows:
        return {Path(uri).name: song for uri, song in rows.sql("select uri, lyrics.song_id from tracks").fetchall()}


def _decoded(path: Path) -> tuple[np.ndarray, int]:
    """Float samples [channels, frames] and their rate."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", rate=stream.rate)
        frames = [f.to_ndarray() for frame in file.decode(stream) for f in resampler.resample(frame)]
        return np.concatenate(frames, axis=1), stream.rate
