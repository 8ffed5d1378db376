"""Accuracy of line times: sentences mixed over music at known times, through `songmill curate`.

python -m benchmarks.line_times --out line-times

One song per language: its three speech clips of the model store, the last of them twice, with pauses in between, over a
real instrumental. The true start and end of a sentence come from the level of the clean clip, before mixing.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import typer

from pipeline.models.store import ModelStore
from stages import pcm
from stages.decode import decode_file

_RATE_HZ = 44_100
_PAUSE_S = 1.7
_HOP = 441  # 10 ms
_SPEECH_DB = -35.0  # below the clip's loudest 10 ms: the clips are clean
_UNSPOKEN = "Nobody knows the river like the ferryman\nHe counts the lanterns one by one\nAnd waits for morning"


@dataclass(frozen=True)
class Line:
    """A sentence, and its start and end in the song in seconds."""

    text: str
    start_s: float
    end_s: float


class Placed(NamedTuple):
    """A line as in the `lyrics` column."""

    verdict: str
    start_s: float
    end_s: float


def main(out: Path = Path("line-times"), music_db: float = -12.0) -> None:
    """Mix, curate, compare."""
    (out / "songs").mkdir(parents=True, exist_ok=True)
    truth = {language: _mix(language, out / "songs" / f"{language}.flac", music_db) for language in _languages()}
    _write_library(truth, out / "library.parquet")
    command = ["curate", out / "songs", "--out", out / "dataset", "--lyrics", out / "library.parquet"]
    command += ["--stages", "decode,quality,fingerprint,vocals,transcript,phonemes,lyrics"]
    subprocess.run([sys.executable, "-m", "pipeline.cli", *map(str, command)], check=True)
    _report(truth, _found(out / "dataset"))


def _languages() -> list[str]:
    return sorted(path.name for path in _clips().iterdir() if path.is_dir())


def _clips() -> Path:
    return ModelStore().pull("speech-clips").path


def _mix(language: str, target: Path, music_db: float) -> list[Line]:
    clips = sorted((_clips() / language).glob("*.wav"))
    music = _loaded(ModelStore().pull("demo-music").path / "calm_acoustic_1.opus")
    song, lines = [np.zeros(int(_PAUSE_S * _RATE_HZ), np.float32)], []
    for clip in [*clips, clips[-1]]:
        speech = _loaded(clip)
        speech = 0.5 * speech / np.abs(speech).max()
        begins, ends = _spoken(speech)
        at = sum(map(len, song)) / _RATE_HZ
        lines.append(Line(clip.with_suffix(".txt").read_text().strip(), at + begins, at + ends))
        song += [speech, np.zeros(int(_PAUSE_S * _RATE_HZ), np.float32)]
    voice = np.concatenate(song)
    bed = np.resize(music, len(voice))
    bed *= 10 ** (music_db / 20) * np.sqrt(np.square(voice[voice != 0]).mean() / np.square(bed).mean())
    soundfile.write(target, np.clip(voice + bed, -1, 1), _RATE_HZ)
    return lines


def _loaded(path: Path) -> np.ndarray:
    return pcm.mono(decode_file(str(path), {"pcm"}).pcm, _RATE_HZ)


def _spoken(speech: np.ndarray) -> tuple[float, float]:
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(speech, _HOP), 2 * _HOP)[::_HOP]
    rms = np.sqrt(np.square(frames).mean(axis=1))
    level = 20 * np.log10(np.maximum(rms / rms.max(), 1e-5))
    (loud,) = np.nonzero(level > _SPEECH_DB)
    return loud[0] * _HOP / _RATE_HZ, loud[-1] * _HOP / _RATE_HZ


def _write_library(truth: dict[str, list[Line]], target: Path) -> None:
    """Write every song's lines, the repeated one only once, and one that is not spoken."""
    rows = [
        {"id": language, "title": language, "language": language, "text": "\n".join(line.text for line in lines[:-1])}
        for language, lines in truth.items()
    ]
    rows.append({"id": "distractor", "title": "distractor", "language": "en", "text": _UNSPOKEN})
    whole = [{"artist": None, "license": "MIT", **row} for row in rows]
    pq.write_table(pa.Table.from_pylist(whole), target)


def _found(dataset: Path) -> dict[str, list[Placed]]:
    rows = duckdb.execute(
        "select regexp_extract(uri, '([a-z]+)[.]flac$', 1), lyrics.song_id, l.verdict, l.start_s, l.end_s "
        "from (select uri, lyrics, unnest(lyrics.lines) as l from read_parquet(?)) where l.start_s is not null",
        [str(dataset / "shards" / "*.parquet")],
    ).fetchall()
    found: dict[str, list[Placed]] = {}
    for language, song, *placed in rows:
        if song == language and placed[0] in ("canonical", "heard"):
            found.setdefault(language, []).append(Placed(*placed))
    return found


def _report(truth: dict[str, list[Line]], found: dict[str, list[Placed]]) -> None:
    starts, ends = [], []
    print(
        "| language | lines placed | canonical | start off by, median s | end off by, median s |\n|---|---|---|---|---|"
    )
    for language, lines in truth.items():
        placed = [(line, near) for line in lines if (near := _nearest(line, found.get(language, [])))]
        start = [near.start_s - line.start_s for line, near in placed]
        end = [near.end_s - line.end_s for line, near in placed]
        canonical = sum(near.verdict == "canonical" for _, near in placed)
        print(f"| {language} | {len(placed)} of {len(lines)} | {canonical} | {_median(start)} | {_median(end)} |")
        starts += start
        ends += end
    for name, offs in (("start", starts), ("end", ends)):
        size = np.abs(offs)
        print(
            f"{name}: {len(offs)} lines, off by a median of {np.median(size):.2f} s (signed {np.median(offs):+.2f}), "
            f"90 % within {np.percentile(size, 90):.2f} s, at most {size.max():.2f} s"
        )


def _nearest(line: Line, found: list[Placed]) -> Placed | None:
    """The placed line that overlaps the true one most."""
    overlapping = [near for near in found if near.start_s < line.end_s and near.end_s > line.start_s]
    return max(overlapping, key=lambda near: _overlap(near, line), default=None)


def _overlap(near: Placed, line: Line) -> float:
    return min(near.end_s, line.end_s) - max(near.start_s, line.start_s)


def _median(values: list[float]) -> str:
    return f"{np.median(values):+.2f}" if values else "-"


if __name__ == "__main__":
    typer.run(main)
