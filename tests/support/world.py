"""A folder of small songs that are moved, copied, replaced and deleted, and what must hold of its dataset."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.curation.curate import Outcome, curate
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.verification import verify_dataset
from pipeline.errors import DataProblem
from pipeline.ingest.manifest import row_id
from pipeline.models.store import ModelStore
from pipeline.planning.config import build_config
from schemas.dataset import Layout
from tests.support.audio import noise, write

CONFIG = """
stages: {decode: {}, quality: {}, fingerprint: {}, length: {engine: 'tests.support.toy_stages:Length'}}
gates: {audio: {min_duration_s: 1}, quality: {min_bandwidth_hz: null}}
"""
# The same length twice, so that a size alone tells nothing; one too short to be kept; one that is no audio.
SECONDS = (2.0, 2.0, 2.5, 3.0, 3.0, 0.5)
RATE_HZ = 8000
STORE = ModelStore()
GARBAGE = len(SECONDS)
CONTENTS = range(GARBAGE + 1)
NAMES = ("a.wav", "b.wav", "c.wav", "d.wav", "deep/a.wav", "deep/b.wav")


def make_contents(folder: Path) -> list[bytes]:
    """Bytes of every song, by number."""
    files = [write(folder / f"{i}.wav", noise(s, RATE_HZ, 1, seed=i), RATE_HZ) for i, s in enumerate(SECONDS)]
    return [*(file.read_bytes() for file in files), b"no audio at all, and nobody will make it so"]


@dataclass
class World:
    """A folder of songs and the dataset made of it.

    Attributes:
        root: of both.
        contents: bytes by number.
        ran: counts of stages and the uris they ran on.
        clock: time of the last change of a file; two changes never have the same, as on a disk that is slow enough.
    """

    root: Path
    contents: list[bytes]
    ran: Any
    folder: str = "songs"
    clock: int = 1_700_000_000
    overrides: list[str] = field(default_factory=list)

    @property
    def songs(self) -> Path:
        return self.root / self.folder

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    @property
    def layout(self) -> Layout:
        return Layout.at(self.dataset)

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.songs.rglob("*.wav"))

    def put(self, name: str, content: int) -> Path:
        path = self.songs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.contents[content])
        self.clock += 1
        os.utime(path, (self.clock, self.clock))
        return path

    def move(self, old: str, new: str) -> None:
        (self.songs / new).parent.mkdir(parents=True, exist_ok=True)
        (self.songs / old).rename(self.songs / new)

    def swap(self, one: str, other: str) -> None:
        self.move(one, "t")
        self.move(other, one)
        self.move("t", other)

    def run(self, source: Path | None = None, out: Path | None = None, **options: bool) -> Outcome:
        self.ran.clear()
        config = self.root / "run.yaml"
        config.write_text(CONFIG)
        overrides = ["resources.rows_per_shard=3", *self.overrides]
        made = build_config(
            file=config, input=str(source or self.songs), output=out or self.dataset, overrides=overrides
        )
        return curate(made, STORE, progress=False, **options)

    def refuses_to_drop(self, before: dict[str, dict[str, Any]]) -> bool:
        """Whether no song of the dataset is there any more."""
        there = {path.read_bytes() for path in self.files}
        if any(row["track_id"] in {*map(track_of, there)} for row in before.values()):
            return False
        if before.keys().isdisjoint(map(str, self.files)):
            with pytest.raises(DataProblem, match="not mounted"):
                self.run(drop_missing=True)
            return True
        return False

    def settled(self, **options: bool) -> Outcome:
        """Run, and check that the dataset is sound and that another run has nothing to do."""
        outcome = self.run(**options)
        ran = self.ran.copy()
        assert not verify_dataset(self.layout)
        before = digests(self.layout)
        again = self.run(**options)
        assert (again.worked_on, again.input.moved, again.input.new, [*self.ran]) == (0, [], [], [])
        assert again.input.missing == outcome.input.missing
        assert not again.input.dropped
        assert digests(self.layout) == before
        self.ran.update(ran)
        return outcome

    def rows(self, layout: Layout | None = None) -> dict[str, dict[str, Any]]:
        """Every row by its uri."""
        layout = layout or self.layout
        root = Path(layout.url)
        files = [*(root / "shards").glob("*.parquet"), *(root / "quarantine").glob("*.parquet")]
        rows = [row for path in files for row in pq.read_table(path).to_pylist()]
        assert len({row["uri"] for row in rows}) == len(rows) == len(Ledger(layout).read().rows)
        assert all(row["row_id"] == row_id(row["uri"]) for row in rows)
        return {row["uri"]: row for row in rows}

    def told(self) -> dict[str, str]:
        """Name -> verdict of every row."""
        reasons = {uri: row["verdict"]["reason"] or row["verdict"]["status"] for uri, row in self.rows().items()}
        return {str(Path(uri).relative_to(self.songs)): reason for uri, reason in sorted(reasons.items())}


def track_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digests(layout: Layout) -> dict[str, str]:
    files = (path for path in Path(layout.url).rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


Op = tuple[str, str, str, int]


def apply(world: World, op: Op) -> None:
    """Change the folder as a user might; what cannot be done is left."""
    kind, one, other, content = op
    path, target = world.songs / one, world.songs / other
    if kind == "put":
        world.put(one, content)
    elif kind == "sidecar":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(f'{{"title": "title {content}"}}')
    elif kind == "folder":
        new = f"{world.folder} moved"
        world.songs.rename(world.root / new)
        world.folder = new
    elif kind == "back" and (world.root / "away.wav").exists() and not path.exists():
        shutil.move(world.root / "away.wav", path) if path.parent.exists() else None
    elif not path.exists() or path == target:
        return
    elif kind == "delete":
        path.unlink()
    elif kind == "away":
        path.rename(world.root / "away.wav")
    elif kind == "move":
        world.move(one, other)
    elif kind == "swap" and target.exists():
        world.swap(one, other)
    elif kind == "copy":
        world.put(other, world.contents.index(path.read_bytes()))


KINDS = ("put", "put", "move", "move", "swap", "copy", "delete", "away", "back", "folder", "sidecar")


def check(world: World, before: dict[str, dict[str, Any]], outcome: Outcome, dropped: bool) -> None:
    """What must hold after a run, whatever happened to the files before it."""
    rows = world.rows()
    there = {str(path): track_of(path.read_bytes()) for path in world.files}
    sidecars = ((str(path), path.with_suffix(".json")) for path in world.files)
    titles = {uri: json.loads(sidecar.read_text())["title"] for uri, sidecar in sidecars if sidecar.exists()}
    assert {uri: rows[uri]["track_id"] for uri in there} == there
    assert {uri: row["title"] for uri, row in rows.items() if uri in there} == {uri: titles.get(uri) for uri in there}
    assert sorted(rows.keys() - there.keys()) == [*outcome.input.missing]
    assert not (dropped and outcome.input.missing)
    kept = {uri: row for uri, row in rows.items() if row["verdict"]["status"] == "kept"}
    for track in {*there.values()}:
        alike = [row for row in rows.values() if row["track_id"] == track]
        good = [row for row in alike if row["verdict"]["stage"] not in ("decode", "audio")]
        chosen = [row for row in good if row["verdict"]["status"] == "kept"]
        assert len(chosen) == (1 if good else 0)
        assert all(row["uri"] in there for row in chosen), "a kept row points nowhere though its bytes are there"
        assert {row["dedup"]["duplicate_of"] for row in good} - {None} <= {row["row_id"] for row in chosen}
    for uri, row in before.items():
        track = row["track_id"]
        if row["verdict"]["status"] == "kept" and not dropped and uri not in there:
            assert any(other["track_id"] == track for other in kept.values()), "a complete row was lost"
    assert all(row["length"]["seconds"] == pytest.approx(row["audio"]["duration_s"], abs=0.01) for row in kept.values())
    known = {row["track_id"]: row["title"] for row in before.values() if row["verdict"]["status"] == "kept"}
    in_place = {row["track_id"] for uri, row in before.items() if there.get(uri) == row["track_id"]}
    overwritten = {row["track_id"] for uri, row in before.items() if there.get(uri, row["track_id"]) != row["track_id"]}
    for stage, uri in world.ran:
        track = there[uri]
        copied = stage != "length" and track in in_place  # a new copy is looked at, to know that it is one
        renamed = known.get(track) != rows[uri]["title"]
        assert track not in known or track in overwritten or copied or renamed, f"{stage} ran on {uri}, which is known"
