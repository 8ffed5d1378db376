"""Files that are moved, copied, replaced and deleted between runs: one run settles it, and nothing complete is lost."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import build_config
from pipeline.curate import Outcome, curate
from pipeline.errors import DataProblem
from pipeline.ledger import Ledger
from pipeline.manifest import row_id
from pipeline.marks import read_marks, set_marks
from pipeline.models.store import ModelStore
from pipeline.verification import verify_dataset
from schemas.dataset import Layout
from tests.audio import noise, write
from tests.in_process import play_cluster
from tests.long import LONG_TESTS

CONFIG = """
stages: {decode: {}, quality: {}, fingerprint: {}, length: {engine: 'tests.toy_stages:Length'}}
gates: {audio: {min_duration_s: 1}, quality: {min_bandwidth_hz: null}}
"""
# The same length twice, so that a size alone tells nothing; one too short to be kept; one that is no audio.
SECONDS = (2.0, 2.0, 2.5, 3.0, 3.0, 0.5)
RATE_HZ = 8000
STORE = ModelStore()
GARBAGE = len(SECONDS)
CONTENTS = range(GARBAGE + 1)
NAMES = ("a.wav", "b.wav", "c.wav", "d.wav", "deep/a.wav", "deep/b.wav")


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("contents")
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
    def layout(self) -> Layout:
        return Layout(self.root / "dataset")

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
            file=config, input=str(source or self.songs), output=out or self.layout.root, overrides=overrides
        )
        return curate(made, STORE, progress=False, **options)

    def refuses_to_drop(self, before: dict[str, dict[str, Any]]) -> bool:
        """Whether no song of the dataset is there any more."""
        there = {path.read_bytes() for path in self.files}
        if any(row["track_id"] in {*map(_track, there)} for row in before.values()):
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
        before = _digests(self.layout)
        again = self.run(**options)
        assert (again.worked_on, again.moved, again.new, [*self.ran]) == (0, [], [], [])
        assert again.missing == outcome.missing
        assert not again.dropped
        assert _digests(self.layout) == before
        self.ran.update(ran)
        return outcome

    def rows(self, layout: Layout | None = None) -> dict[str, dict[str, Any]]:
        """Every row by its uri."""
        layout = layout or self.layout
        files = [*layout.shards.glob("*.parquet"), *layout.quarantine.glob("*.parquet")]
        rows = [row for path in files for row in pq.read_table(path).to_pylist()]
        assert len({row["uri"] for row in rows}) == len(rows) == len(Ledger(layout).read().rows)
        assert all(row["row_id"] == row_id(row["uri"]) for row in rows)
        return {row["uri"]: row for row in rows}

    def told(self) -> dict[str, str]:
        """Name -> verdict of every row."""
        reasons = {uri: row["verdict"]["reason"] or row["verdict"]["status"] for uri, row in self.rows().items()}
        return {str(Path(uri).relative_to(self.songs)): reason for uri, reason in sorted(reasons.items())}


def _track(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _digests(layout: Layout) -> dict[str, str]:
    files = (path for path in layout.root.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def world(tmp_path, contents, monkeypatch) -> World:
    return World(tmp_path, contents, play_cluster(monkeypatch))


def test_a_renamed_and_a_deleted_song_settle_in_one_run(world):
    for i, name in enumerate(("a.wav", "b.wav", "c.wav")):
        world.put(name, i)
    world.settled()
    before = world.rows()[str(world.songs / "a.wav")]
    set_marks(world.layout, {row_id(str(world.songs / "a.wav")): "keep"}, "good")
    world.settled()
    world.move("a.wav", "deep/renamed.wav")
    (world.songs / "b.wav").unlink()
    world.put("new.wav", 3)
    outcome = world.settled()
    assert world.told() == dict.fromkeys(("b.wav", "c.wav", "deep/renamed.wav", "new.wav"), "kept")
    after = world.rows()[str(world.songs / "deep/renamed.wav")]
    changed = {"row_id", "uri"}
    assert {name: after[name] for name in after if name not in changed} == {
        name: before[name] for name in before if name not in changed
    }
    assert {uri for _, uri in world.ran} == {str(world.songs / "new.wav")}
    assert {row: mark.note for row, mark in read_marks(world.layout).items()} == {after["row_id"]: "good"}
    assert outcome.input_lines()[0] == "input: 1 new, 1 moved, 1 missing"
    assert outcome.input_facts()["files"] == {
        "new": [str(world.songs / "new.wav")],
        "moved": [(str(world.songs / "a.wav"), after["uri"])],
        "missing": [str(world.songs / "b.wav")],
        "dropped": [],
    }


def test_missing_rows_leave_when_they_are_told_to_and_come_back_with_their_files(world):
    for i, name in enumerate(("a.wav", "b.wav", "c.wav")):
        world.put(name, i)
    world.put("copy.wav", 1)
    world.settled()
    original = "b.wav" if world.told()["b.wav"] == "kept" else "copy.wav"
    (world.songs / "a.wav").unlink()
    (world.songs / "copy.wav").unlink()
    outcome = world.settled(drop_missing=True)
    assert [*map(os.path.basename, outcome.dropped)] == ["a.wav", "copy.wav"]
    assert not outcome.missing
    assert world.told() == {"b.wav": "kept", "c.wav": "kept"}
    assert not world.ran, f"{original} was kept, and its columns hold for its copy"
    world.put("a.wav", 0)
    world.settled()
    assert world.told() == dict.fromkeys(("a.wav", "b.wav", "c.wav"), "kept")


def test_a_manifest_may_name_files_that_are_away(world):
    a, b = world.put("a.wav", 0), world.put("b.wav", 1)
    manifest = world.root / "manifest.jsonl"
    manifest.write_text("".join(f'{{"uri": "songs/{name}"}}\n' for name in ("a.wav", "b.wav", "never.wav")))
    world.run(manifest)
    assert world.told() == {"a.wav": "kept", "b.wav": "kept", "never.wav": "Unreadable"}
    a.rename(world.root / "away.wav")
    outcome = world.run(manifest)
    assert world.told() == {"a.wav": "kept", "b.wav": "kept", "never.wav": "Unreadable"}
    assert [Path(uri).name for uri in outcome.missing] == ["a.wav", "never.wav"]
    assert not world.ran
    for _ in range(2):
        world.run(manifest, drop_missing=True)
        assert world.told() == {"a.wav": "Unreadable", "b.wav": "kept", "never.wav": "Unreadable"}
    assert not world.ran
    b.unlink()
    before = _digests(world.layout)
    with pytest.raises(DataProblem, match="not mounted"):
        world.run(manifest, drop_missing=True)
    assert _digests(world.layout) == before
    assert world.run(manifest).missing
    assert world.told()["b.wav"] == "kept"


def test_songs_manifest_and_dataset_move_together(world):
    names = ("a.wav", "b.wav", "deep/c.wav", "again.wav", "words.wav")
    for content, name in zip((0, 1, 2, 2, GARBAGE), names, strict=True):
        world.put(name, content)
    (world.songs / "manifest.jsonl").write_text("".join(f'{{"uri": "{name}", "title": "{name}"}}\n' for name in names))
    world.run(world.songs / "manifest.jsonl")
    before = world.told()
    (world.root / "elsewhere").mkdir()
    for name in ("songs", "dataset"):
        (world.root / name).rename(world.root / "elsewhere" / name)
    world.root /= "elsewhere"
    outcome = world.run(world.songs / "manifest.jsonl")
    assert len(outcome.moved) == 5
    assert not world.ran
    assert world.told() == before
    assert not verify_dataset(world.layout)
    assert world.run(world.songs / "manifest.jsonl").worked_on == 0


@pytest.mark.parametrize("there", [True, False])
def test_another_plan_waits_for_a_file_that_is_away_and_for_no_other(world, there):
    for i, name in enumerate(("a.wav", "b.wav", "c.wav")):
        world.put(name, i)
    world.settled()
    (world.songs / "a.wav").rename(world.root / "a.wav")
    world.overrides = ["length.fails_on=nobody", "audio.min_duration_s=1.5"]
    outcome = world.settled(update=True)
    assert outcome.waiting == 1
    assert "1 rows could not be brought up to date" in outcome.input_lines()[-1]
    assert world.told() == dict.fromkeys(("a.wav", "b.wav", "c.wav"), "kept")
    assert {Path(uri).name for stage, uri in world.ran if stage == "length"} == {"b.wav", "c.wav"}
    plans = {commit.plan for commit in Ledger(world.layout).read().commits.values()}
    assert len(plans) == 2
    world.overrides += ["quality.silence_dbfs=-50"]  # the scan has to be made anew as well
    assert world.settled(update=True).waiting == 1
    assert world.told() == dict.fromkeys(("a.wav", "b.wav", "c.wav"), "kept")
    if there:
        (world.root / "a.wav").rename(world.songs / "a.wav")
        assert world.settled().waiting == 0
        assert {commit.plan for commit in Ledger(world.layout).read().commits.values()}.isdisjoint(plans)
    else:
        world.settled(drop_missing=True)
        assert world.told() == dict.fromkeys(("b.wav", "c.wav"), "kept")


@pytest.mark.parametrize("bound", [2.2, 2.7])
def test_other_thresholds_never_fail_a_row_whose_file_is_away(world, bound):
    for i, name in enumerate(("a.wav", "b.wav", "c.wav", "short.wav")):
        world.put(name, (0, 2, 3, 5)[i])
    world.settled()
    shutil.move(world.songs, world.root / "away")
    world.put("other.wav", 4)
    world.overrides = [f"length.max_seconds={bound}", "audio.min_duration_s=0.1"]
    outcome = world.settled(update=True)
    assert outcome.waiting == 1, "what was too short would be kept now, and nobody has its columns"
    assert world.told() == {
        "a.wav": "kept",
        "b.wav": "max_seconds" if bound < 2.5 else "kept",
        "c.wav": "max_seconds",
        "other.wav": "max_seconds",
        "short.wav": "min_duration_s",
    }


Op = tuple[str, str, str, int]
OPS = st.tuples(
    st.sampled_from(("put", "put", "move", "move", "swap", "copy", "delete", "away", "back", "folder", "sidecar")),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.sampled_from(CONTENTS),
)


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


def check(world: World, before: dict[str, dict[str, Any]], outcome: Outcome, dropped: bool) -> None:
    """What must hold after a run, whatever happened to the files before it."""
    rows = world.rows()
    there = {str(path): _track(path.read_bytes()) for path in world.files}
    sidecars = ((str(path), path.with_suffix(".json")) for path in world.files)
    titles = {uri: json.loads(sidecar.read_text())["title"] for uri, sidecar in sidecars if sidecar.exists()}
    assert {uri: rows[uri]["track_id"] for uri in there} == there
    assert {uri: row["title"] for uri, row in rows.items() if uri in there} == {uri: titles.get(uri) for uri in there}
    assert sorted(rows.keys() - there.keys()) == [*outcome.missing]
    assert not (dropped and outcome.missing)
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
    overwritten = {row["track_id"] for uri, row in before.items() if there.get(uri, row["track_id"]) != row["track_id"]}
    for _, uri in world.ran:
        track = there[uri]
        assert track not in known or track in overwritten or known[track] != rows[uri]["title"], (
            "a known song was heard"
        )


@settings(
    max_examples=150 if LONG_TESTS else 4,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    first=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(CONTENTS)), min_size=2, max_size=6),
    steps=st.lists(st.tuples(st.lists(OPS, min_size=1, max_size=4), st.booleans()), min_size=1, max_size=4),
)
def test_one_run_settles_whatever_has_happened_to_the_files(tmp_path_factory, contents, first, steps):
    with pytest.MonkeyPatch.context() as patch:
        world = World(tmp_path_factory.mktemp("world"), contents, play_cluster(patch))
        for name, content in first:
            world.put(name, content)
        world.settled()
        for ops, drop in steps:
            before = world.rows()
            for op in ops:
                apply(world, op)
            if not world.files:
                world.put("a.wav", 0)
            drop = drop and not world.refuses_to_drop(before)
            outcome = world.settled(drop_missing=drop)
            check(world, before, outcome, drop)
        fresh = Layout(world.root / "fresh")
        world.run(out=fresh.root)
        anew, rows = world.rows(fresh), world.rows()
        status = {
            layout: sorted((r["track_id"], r["verdict"]["status"]) for u, r in table.items() if u in anew)
            for layout, table in (("fresh", anew), ("old", rows))
        }
        assert status["fresh"] == status["old"]
