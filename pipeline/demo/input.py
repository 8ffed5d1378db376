"""Input for a first run: a few songs with vocals, instrumentals, duplicates and broken files, and a lyric library.

The songs are those of the store's entries `demo-songs` and `demo-music`, all of them generated. Their files record how
they were made (a tag `prompt` holds the lyrics); the demo's copies carry no tags, so that whatever the pipeline finds
comes from the audio.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.models.registry import Entry
from pipeline.models.store import ModelStore

_ARTIST = "ACE-Step"
_NO_TAGS = {"id3v2_version": "0", "write_id3v1": "0"}  # of FFmpeg's MP3 muxer
_LIBRARY = pa.schema([(name, pa.string()) for name in ("id", "title", "artist", "language", "text", "license")])


@dataclass(frozen=True)
class DemoInput:
    """Input for `songmill curate`: a manifest and a lyric library."""

    songs: Path
    library: Path


@dataclass(frozen=True)
class _Song:
    """A song of `demo-songs`; without a length only its lyrics are used, as a distractor in the library."""

    source: str
    title: str
    language: str
    length_s: float | None = None

    @property
    def name(self) -> str:
        return self.title.lower().replace(" ", "_")


@dataclass(frozen=True)
class _File:
    """A file of the demo and its manifest entry."""

    name: str
    content: bytes
    entry: Entry
    title: str

    @property
    def row(self) -> dict[str, str]:
        return {
            "uri": f"songs/{self.name}",
            "title": self.title,
            "artist": _ARTIST,
            "license": self.entry.licence,
            "source": self.entry.homepage,
        }


_SONGS = (
    _Song("audio_ace_step_1_5_split_4b-1.mp3", "Static in the Air", "en", length_s=60),
    _Song("audio_ace_step_1_t2a_song-1.mp3", "Fuwafuwa", "ja", length_s=30),
    _Song("audio_ace_step_1_5_checkpoint-1.mp3", "Late Night Glow", "en"),
    _Song("audio_ace_step_1_5_split-1.mp3", "Turn It Up", "en"),
)
_INSTRUMENTALS = {
    "happy_electronic_1": "Happy Electronic",
    "calm_acoustic_1": "Calm Acoustic",
    "energetic_electronic_2": "Energetic Electronic",
    "nostalgic_acoustic_s411": "Nostalgic Acoustic",
}
_REENCODED, _COPIED = "happy_electronic_1", "calm_acoustic_1"


def prepare(folder: Path, store: ModelStore) -> DemoInput:
    """Write the demo's input into `folder`, pulling the audio if needed. Files that are already correct stay untouched.

    Raises:
        AllSourcesFailed: the audio is not in the store and no source served it.
    """
    songs, music = store.pull("demo-songs").path, store.pull("demo-music").path
    sung, instrumental = store.entry("demo-songs"), store.entry("demo-music")
    files = [*_songs(songs, sung), *_instrumentals(music, instrumental), *_duplicates(music, instrumental)]
    files += _broken(files[0])

    for file in files:
        _write(folder / "songs" / file.name, file.content)
    demo = DemoInput(songs=folder / "songs.jsonl", library=folder / "lyrics.parquet")
    _write(demo.songs, "".join(json.dumps(file.row) + "\n" for file in files).encode())
    _write(demo.library, _library(songs, sung))
    return demo


def _songs(folder: Path, entry: Entry) -> Iterator[_File]:
    for song in _SONGS:
        if song.length_s:
            yield _File(f"{song.name}.mp3", _cut(folder / song.source, song.length_s), entry, song.title)


def _instrumentals(folder: Path, entry: Entry) -> Iterator[_File]:
    for name, title in _INSTRUMENTALS.items():
        yield _File(f"{name}.opus", (folder / f"{name}.opus").read_bytes(), entry, title)


def _duplicates(folder: Path, entry: Entry) -> Iterator[_File]:
    yield _File(f"{_REENCODED}_96k.mp3", _reencoded(folder / f"{_REENCODED}.opus"), entry, _INSTRUMENTALS[_REENCODED])
    copy = (folder / f"{_COPIED}.opus").read_bytes()
    yield _File(f"{_COPIED}_copy.opus", copy, entry, _INSTRUMENTALS[_COPIED])


def _broken(whole: _File) -> Iterator[_File]:
    yield _File("truncated.mp3", whole.content[: len(whole.content) // 3], whole.entry, "Truncated")
    yield _File("notes.wav", b"This is a text file, whatever its name says.\n", whole.entry, "Notes")


def _library(folder: Path, entry: Entry) -> bytes:
    rows = [
        {
            "id": song.name,
            "title": song.title,
            "artist": _ARTIST,
            "language": song.language,
            "text": _lyrics(folder / song.source),
            "license": entry.licence,
        }
        for song in _SONGS
    ]
    library = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_LIBRARY), library)
    return library.getvalue()


def _lyrics(path: Path) -> str:
    """The lyrics a song was generated from: its tag `prompt` is a graph of nodes, one of which has them as an input."""
    with av.open(str(path)) as file:
        nodes: dict[str, Any] = json.loads(file.metadata["prompt"])
    (lyrics,) = (node["inputs"]["lyrics"] for node in nodes.values() if "lyrics" in node["inputs"])
    return lyrics.strip()


def _cut(path: Path, length_s: float) -> bytes:
    """The beginning of an MP3: its packets unchanged, without its tags."""
    content = io.BytesIO()
    with av.open(str(path)) as source, av.open(content, "w", "mp3", _NO_TAGS) as target:
        stream = source.streams.audio[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.pts is None or packet.time_base is None or packet.pts * packet.time_base >= length_s:
                break
            packet.stream = copy
            target.mux(packet)
    return content.getvalue()


def _reencoded(path: Path) -> bytes:
    """The same music as an MP3 of 96 kbit/s: different bytes that sound the same."""
    content = io.BytesIO()
    with av.open(str(path)) as source, av.open(content, "w", "mp3", _NO_TAGS) as target:
        stream = target.add_stream("libmp3lame", rate=48_000, layout="stereo")
        stream.bit_rate = 96_000
        for frame in source.decode(audio=0):
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return content.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Write a file unless it is already correct: a new modification time would make the pipeline read it again."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
