"""The lyric index: size, speed and recall on synthetic songs (see `benchmarks.lyric_world`).

python -m benchmarks.lyrics scale --songs 1000000 --index million.index
python -m benchmarks.lyrics recall --songs 100000 --queries 50
python -m benchmarks.lyrics compare
"""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rapidfuzz import fuzz, process

from benchmarks.lyric_world import LANGUAGES, lyrics, misheard, noisy, part, song, speech
from stages.lyrics import Lyrics
from stages.matching.alignment import Word, align
from stages.matching.index import ContainmentSketch, LshSketch, Postings, Sketch, lsh_rows
from stages.matching.library import (
    COLUMNS,
    MANIFEST,
    SEGMENTS,
    LyricLibrary,
    LyricSong,
    new_manifest,
    song_table,
    write_segment,
)

app = typer.Typer(add_completion=False)
_SEGMENT = 100_000
_ABSENT = 10_000_000  # songs from this number on are in no library


@app.command()
def scale(songs: int = 1_000_000, index: Path = Path("million.index"), queries: int = 500) -> None:
    """Build an index of synthetic songs and time queries to it, with 20 % of the words wrong."""
    if not index.exists():
        _build(songs, index)
    size = sum(file.stat().st_size for file in index.rglob("*") if file.is_file())
    postings = sum(file.stat().st_size for file in index.rglob("*.npy"))
    print(f"| index | {size / songs:.0f} bytes a song, of which keys and postings {postings / songs:.0f} |")
    asked = [_heard(n, lambda code, lines, rng: noisy(code, lines, 0.2, rng)) for n in _sample(songs, queries)]
    before = _anonymous_mb()
    library = LyricLibrary.open(index)
    for kind in ("first", "warm"):
        times, right = [], 0
        for number, phones in zip(_sample(songs, queries), asked, strict=True):
            start = time.perf_counter()
            found = library.candidates(phones, 5)
            times.append(time.perf_counter() - start)
            right += bool(found) and found[0].song.id == song(number).id
        median, p99 = np.percentile(times, [50, 99]) * 1e3
        print(f"| query, {kind} pass | median {median:.1f} ms, p99 {p99:.1f} ms; recall@1 {right / queries:.3f} |")
    print(f"| memory of a worker beyond the mapped files | {_anonymous_mb() - before:.0f} MB |")


@app.command()
def text(songs: int = 100_000, out: Path = Path("lyrics.parquet")) -> None:
    """Write synthetic songs as a library, for timing `songmill lyrics index`."""
    with pq.ParquetWriter(out, pa.schema([(name, pa.string()) for name in COLUMNS])) as file:
        for start in range(0, songs, 1000):
            rows = [_row(number) for number in range(start, min(start + 1000, songs))]
            file.write_table(pa.Table.from_pylist(rows, file.schema))


def _row(number: int) -> dict[str, str]:
    code, lines = lyrics(number)
    written = "\n".join(speech(code).text(line) for line in lines)
    return {
        "id": f"{number:07d}",
        "title": f"LyricSong {number}",
        "artist": "",
        "language": code,
        "text": written,
        "license": "",
    }


@app.command()
def recall(songs: int = 100_000, queries: int = 50, aligned: int = 8) -> None:
    """Recall@1 of both engines, and of the whole decision including alignment, one table row per condition."""
    made = [song(number) for number in range(songs)]
    rows = lsh_rows(jaccard=0.25, recall=0.95)
    engines: dict[str, Sketch] = {"containment": ContainmentSketch(), f"lsh, {rows} rows": LshSketch(rows=rows)}
    libraries = {name: LyricLibrary.of(made, sketch) for name, sketch in engines.items()}
    print(f"| condition | {' | '.join(libraries)} | candidates of lsh | found by the stage |")
    print("|---|" + "---|" * (len(libraries) + 2))
    for name, change in _conditions():
        hits = dict.fromkeys(libraries, 0)
        numbers = [n for code in range(len(LANGUAGES)) for n in _sample(songs, queries, code)]
        heard = [_heard(number, change) for number in numbers]
        admitted = []
        for engine, library in libraries.items():
            for number, phones in zip(numbers, heard, strict=True):
                found = library.candidates(phones, 1)
                hits[engine] += bool(found) and found[0].song.id == made[number].id
        for phones in heard[:50]:
            admitted.append(len(list(libraries[list(libraries)[1]].candidates(phones, songs))))
        sung = [n for code in range(len(LANGUAGES)) for n in _sample(songs, aligned, code)]
        right = sum(_decided(libraries["containment"], n, change) == made[n].id for n in sung)
        shares = " | ".join(f"{hit / len(numbers):.3f}" for hit in hits.values())
        print(f"| {name} | {shares} | {np.mean(admitted):.0f} | {right / len(sung):.3f} |", flush=True)
    _by_language(libraries["containment"], made, 4 * queries)
    absent = range(_ABSENT, _ABSENT + 1000)
    false = sum(_decided(libraries["containment"], n, _as_it_is) is not None for n in absent)
    print(f"| songs not in the library that were matched | {false} of {len(absent)} |")


def _by_language(library: LyricLibrary, made: list[LyricSong], queries: int) -> None:
    for number, language in enumerate(LANGUAGES):
        shares = []
        for _, change in [*_conditions()][1:4:2]:  # 20 and 40 % of the words wrong
            sung = _sample(len(made), queries, number)
            found = [library.candidates(_heard(n, change), 1) for n in sung]
            right = [bool(hit) and hit[0].song.id == made[n].id for hit, n in zip(found, sung, strict=True)]
            shares.append(np.mean(right))
        print(f"| {language} | {shares[0]:.3f} at 20 %, {shares[1]:.3f} at 40 % |", flush=True)


@app.command()
def compare(songs: int = 5_000, queries: int = 40) -> None:
    """IPA against text, for misheard words: recall@1 and time per query."""
    made = [song(number) for number in range(songs)]
    texts = [" ".join(line.text for line in one.lines) for one in made]
    sketch = ContainmentSketch()
    by_ipa = LyricLibrary.of(made, sketch)
    every = ContainmentSketch(keep_one_in=1)
    whole = [frozenset(every.keys("".join(one.phones)).tolist()) for one in made]
    by_text = Postings.build([sketch.keys(words.replace(" ", "")) for words in texts])
    ways = ("containment of IPA", "every shingle of every song", "containment of text", "rapidfuzz on text")
    print(f"| words misheard | {' | '.join(ways)} |")
    print("|---|---|---|---|---|")
    for wrong in (0.0, 0.5, 1.0):
        hits, seconds = np.zeros(4), np.zeros(4)
        numbers = [n for code in range(len(LANGUAGES)) for n in _sample(songs, queries // len(LANGUAGES), code)]
        for number in numbers:
            rng = np.random.default_rng(number)
            code, lines = lyrics(number)
            lines = noisy(code, misheard(code, part(lines, 0.3, rng), wrong, rng), 0.2, rng)
            words = " ".join(speech(code).text(line) for line in lines)
            phones = "".join(speech(code).ipa(line) for line in lines)
            answers: list[Callable[[], int]] = [
                lambda phones=phones: int(by_ipa.candidates(phones, 1)[0].song.id[5:]),
                lambda phones=phones: _by_brute_force(every, whole, phones),
                lambda words=words: by_text.best(sketch.keys(words.replace(" ", "")), 1)[0][0],
                lambda words=words: process.extractOne(words, texts, scorer=fuzz.partial_ratio)[2],
            ]
            for way, answer in enumerate(answers):
                start = time.perf_counter()
                with suppress(IndexError):
                    hits[way] += answer() == number
                seconds[way] += time.perf_counter() - start
        means = zip(hits / len(numbers), seconds / len(numbers) * 1e3, strict=True)
        cells = [f"{share:.3f} ({ms:.1f} ms)" for share, ms in means]
        print(f"| {wrong:.0%} | {' | '.join(cells)} |", flush=True)


def _by_brute_force(sketch: Sketch, songs: list[frozenset[int]], phones: str) -> int:
    heard = frozenset(sketch.keys(phones).tolist())
    return max(range(len(songs)), key=lambda number: len(heard & songs[number]))


def _conditions() -> Iterator[tuple[str, Callable]]:
    for share in (0.1, 0.2, 0.3, 0.4):
        yield f"{share:.0%} of words wrong", lambda code, lines, rng, s=share: noisy(code, lines, s, rng)
    for share in (0.3, 0.5):
        yield (
            f"20 % wrong, {share:.0%} of the song",
            lambda code, lines, rng, s=share: noisy(code, part(lines, s, rng), 0.2, rng),
        )
    yield "all words misheard that can be", lambda code, lines, rng: misheard(code, lines, 1.0, rng)


def _as_it_is(_code: str, lines: list[np.ndarray], _rng: np.random.Generator) -> list[np.ndarray]:
    return lines


def _sample(songs: int, count: int, language: int | None = None) -> list[int]:
    rng = np.random.default_rng(songs + count)
    if language is None:
        return sorted(rng.choice(songs, count, replace=False).tolist())
    return sorted((rng.choice(songs // len(LANGUAGES), count, replace=False) * len(LANGUAGES) + language).tolist())


def _heard(number: int, change: Callable) -> str:
    code, lines = lyrics(number)
    return "".join(speech(code).ipa(line) for line in change(code, lines, np.random.default_rng(number + 1)))


def _decided(library: LyricLibrary, number: int, change: Callable) -> str | None:
    """What the stage would find: candidates, alignment, thresholds."""
    stage = Lyrics()
    code, lines = lyrics(number)
    tongue = speech(code)
    heard = [word for line in change(code, lines, np.random.default_rng(number + 1)) for word in line.tolist()]
    words = [Word(tongue.phones[word], 0.4 * i, 0.4 * i + 0.3) for i, word in enumerate(heard)]
    least = (stage.params.min_similarity, stage.params.canonical_similarity)
    candidates = library.candidates("".join(word.phones for word in words), stage.params.candidates)
    found = [(align(hit.song.phones, words, *least), hit.song.id) for hit in candidates]
    passed = [(a.score * a.coverage, id) for a, id in found if stage._is_found(a)]
    return max(passed)[1] if passed else None


def _build(songs: int, index: Path) -> None:
    start = time.perf_counter()
    for code in LANGUAGES:
        speech(code)
    print(f"| IPA of {len(LANGUAGES)} x 20,000 words | {time.perf_counter() - start:.0f} s |", flush=True)
    start = time.perf_counter()
    manifest = new_manifest(ContainmentSketch())
    pieces = [(first, min(first + _SEGMENT, songs), index) for first in range(0, songs, _SEGMENT)]
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        manifest["segments"] = pool.starmap(_segment, pieces, chunksize=1)
    (index / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    seconds = time.perf_counter() - start
    print(f"| build, {songs} songs, {os.cpu_count()} cores | {seconds:.0f} s |", flush=True)


def _segment(first: int, last: int, index: Path) -> dict:
    name, sketch = f"{first:07d}", ContainmentSketch()
    tables, keys = [], []
    for start in range(first, last, 1000):
        made = [song(number) for number in range(start, min(start + 1000, last))]
        tables.append(song_table(made))
        keys += [sketch.keys("".join(one.phones)) for one in made]
    write_segment(index / SEGMENTS / name, pa.concat_tables(tables), Postings.build(keys))
    return {"name": name, "songs": last - first}


def _anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024


if __name__ == "__main__":
    app()
