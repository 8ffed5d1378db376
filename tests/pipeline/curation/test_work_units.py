"""What becomes of committed rows when files, thresholds or plans change, without a cluster."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.curation import work_units
from pipeline.curation.scan import rows_to_scan
from pipeline.curation.sink import ScanSink, SinkSpec
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import set_marks
from pipeline.dataset.scan_table import drop_from_scan, read_scan, scan_schema
from pipeline.dataset.sketch_reader import SketchReader
from pipeline.dataset.stage_times import stage_times
from pipeline.dataset.stats import collect_stats, connect
from pipeline.dataset.tombstones import bury
from pipeline.planning.config import build_config
from pipeline.planning.dag import Dag, build_dag
from pipeline.planning.plan import make_plan
from stages.fingerprint import FINGERPRINT
from tests.support.played_dataset import KEY, STAGES, PlayedDataset, scanned


def test_a_copy_comes_back_when_its_original_becomes_another_song(played_dataset):
    played_dataset.run(scanned("a", "one"), scanned("b", "one"))
    assert played_dataset.verdicts == {"a": "kept", "b": "exact_duplicate"}
    played_dataset.run(scanned("a", "two"), scanned("b", "one"))
    assert played_dataset.verdicts == {"a": "kept", "b": "kept"}
    assert sorted(played_dataset.measured) == ["a", "a", "b"]


def test_a_file_that_becomes_a_copy_of_a_committed_track_is_the_duplicate(played_dataset):
    played_dataset.run(scanned("a", "one"), scanned("b", "two"))
    played_dataset.run(scanned("a", "two"), scanned("b", "two"))
    assert played_dataset.verdicts == {"a": "exact_duplicate", "b": "kept"}
    assert played_dataset.rows["a"]["dedup"]["duplicate_of"] == "b"


def test_a_repaired_file_keeps_what_the_scan_measured_though_its_neighbour_is_still_broken(played_dataset):
    played_dataset.run(scanned("a", "one", works=False), scanned("b", "two", works=False))
    played_dataset.run(scanned("a", "one", works=False), scanned("b", "three"))
    assert played_dataset.verdicts == {"a": "TruncatedAudio", "b": "kept"}
    assert played_dataset.rows["b"]["quality"]["loudness_lufs"] == -14


def test_a_looser_threshold_accepts_rows_in_units_of_the_usual_size(played_dataset):
    songs = [scanned(f"{i:03d}", f"track {i}", loudness=-50) for i in range(10)]
    size = "resources.rows_per_shard=4"
    played_dataset.run(*songs, overrides=(size,))
    assert set(played_dataset.verdicts.values()) == {"min_loudness_lufs"}
    played_dataset.run(*songs, overrides=(size, "quality.min_loudness_lufs=-60"))
    assert set(played_dataset.verdicts.values()) == {"kept"}
    assert sorted(pq.read_metadata(path).num_rows for path in (played_dataset.root / "shards").iterdir()) == [2, 4, 4]


def test_a_stricter_threshold_turns_rows_away_with_all_their_columns_and_measures_nothing(played_dataset):
    songs = scanned("a", "one", loudness=-30), scanned("b", "two")
    played_dataset.run(*songs)
    played_dataset.run(*songs, overrides=("quality.min_loudness_lufs=-20",))
    assert played_dataset.verdicts == {"a": "min_loudness_lufs", "b": "kept"}
    assert played_dataset.rows["a"]["key"] == KEY | {"strength": pytest.approx(0.9)}
    assert played_dataset.measured == ["a", "b"]


def test_a_lower_duplicate_threshold_finds_copies_among_committed_songs(played_dataset):
    a, b = scanned("a", "one"), scanned("b", "two")
    b["fingerprint"]["hashes"] = sorted(a["fingerprint"]["hashes"][:60] + b["fingerprint"]["hashes"][60:])
    played_dataset.run(a, b, overrides=("dedup.threshold=0.9",))
    assert played_dataset.verdicts == {"a": "kept", "b": "kept"}
    played_dataset.run(a, b)
    assert played_dataset.verdicts == {"a": "kept", "b": "near_duplicate"}


def test_an_edited_licence_reaches_the_shard_without_any_measurement(played_dataset):
    played_dataset.run(scanned("a", "one"), scanned("b", "two"))
    played_dataset.run(scanned("a", "one", license="CC0-1.0"), scanned("b", "two"))
    assert played_dataset.rows["a"]["license"] == "CC0-1.0"
    assert played_dataset.rows["a"]["flags"] == []
    assert played_dataset.measured == ["a", "b"]


def scan_pass(dataset: PlayedDataset, *rows: dict[str, Any], unit: int = 7, overrides: tuple[str, ...] = ()) -> Dag:
    """Write these rows down as one part of the scan table."""
    config = build_config(only=STAGES, overrides=overrides, input="songs", output=dataset.root)
    dag = build_dag(config, {}, {})
    fingerprints = {node.column: node.fingerprint for node in dag.scan}
    table = pa.Table.from_pylist(list(rows), scan_schema(dag))
    count = len(rows)
    places = {"unit": [unit] * count, "place": range(count), "unit_rows": [count] * count, "supersedes": [None] * count}
    for column, values in places.items():
        table = table.append_column(column, pa.array(values, pa.int64()))
    (part,) = ScanSink(SinkSpec(dataset.layout, "scan", fingerprints))(table)
    (dataset.root / "_songmill/scan").mkdir(exist_ok=True)
    part.path.replace(dataset.root / f"_songmill/scan/part-{part.number:06d}.parquet")
    return dag


def test_a_row_that_left_the_input_stays_and_is_scanned_again_for_another_plan(played_dataset):
    dag = scan_pass(played_dataset, scanned("a", "one", size=5, stamp="x"))
    assert read_scan(played_dataset.layout, dag)["row_id"].to_pylist() == ["a"]
    other = build_dag(
        build_config(only=STAGES, overrides=["decode.missing_s=2"], input="songs", output=played_dataset.root),
        {},
        {},
    )
    names = ["row_id", "title", "artist", "album", "language", "given_lyrics", "license", "source", "uri"]
    empty = pa.schema(
        [*[(name, pa.string()) for name in names], ("size", pa.int64()), ("stamp", pa.string())]
    ).empty_table()
    assert not read_scan(played_dataset.layout, other).num_rows
    found = rows_to_scan(empty, read_scan(played_dataset.layout, other), {"a"}, played_dataset.layout, other)
    assert found["uri"].to_pylist() == ["songs/a.flac"]
    assert not rows_to_scan(empty, read_scan(played_dataset.layout, dag), {"a"}, played_dataset.layout, dag).num_rows


def test_sketches_are_read_from_the_part_that_counts_when_somebody_asks(played_dataset):
    scan_pass(played_dataset, scanned("a", "one"), scanned("b", "two"), unit=0)
    dag = scan_pass(played_dataset, scanned("c", "three", works=False), scanned("a", "four"), unit=1)
    scan = read_scan(played_dataset.layout, dag)
    assert scan.select(["row_id", "part"]).to_pylist() == [
        {"row_id": "b", "part": 0}, {"row_id": "c", "part": 1}, {"row_id": "a", "part": 1},
    ]  # fmt: skip
    reader = SketchReader(played_dataset.layout)
    expected = [scanned("b", "two")["fingerprint"], None, scanned("a", "four")["fingerprint"]]
    known = [value and value["hashes"] for value in reader(scan).to_pylist()]
    assert known == [value and value["hashes"] for value in expected]
    block = scan.slice(2, 1).append_column("fingerprint", pa.nulls(1, FINGERPRINT))
    assert reader.complete(block)["fingerprint"][0].as_py()["hashes"] == expected[2]["hashes"]
    assert "fingerprint" not in reader.complete(scan).column_names
    assert not len(reader(scan.slice(0, 0)))


def test_sketches_of_another_engine_may_say_more(played_dataset):
    folder = played_dataset.root / "_songmill/scan"
    folder.mkdir()
    type = pa.struct([("hashes", pa.list_(pa.uint32())), ("landmarks", pa.int32())])
    for part in range(2):
        rows = [{"row_id": f"{part}", "fingerprint": {"hashes": [part], "landmarks": 5}}]
        schema = pa.schema([("row_id", pa.string()), ("fingerprint", type)])
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"part-{part:06d}.parquet")
    asked = pa.table({"row_id": ["1", "0"], "part": [1, 0]})
    assert SketchReader(played_dataset.layout)(asked).to_pylist() == [
        {"hashes": [1], "landmarks": 5}, {"hashes": [0], "landmarks": 5},
    ]  # fmt: skip


def test_times_of_a_part_stand_in_its_footer_or_of_an_earlier_release_in_its_rows(played_dataset):
    timing = [{"stage": "decode", "seconds": 2.0}, {"stage": "quality", "seconds": 0.5}]
    failed = [{"stage": "decode", "seconds": 1.0}]
    scan_pass(
        played_dataset, {**scanned("a", "one"), "timing": timing}, {**scanned("b", "b", works=False), "timing": failed}
    )
    path = played_dataset.root / "_songmill/scan/part-000007.parquet"
    times = {time.stage: (time.rows, time.seconds, time.audio_s) for time in stage_times(played_dataset.layout, [])}
    assert times == {"scan: decode": (2, 3.0, 30.0), "scan: quality": (1, 0.5, 30.0)}
    whole = stage_times(played_dataset.layout, [])
    rows = pq.read_table(path)
    pq.write_table(rows.replace_schema_metadata(None), path)
    assert stage_times(played_dataset.layout, []) == whole
    pq.write_table(rows.drop_columns(["timing"]), path)
    assert stage_times(played_dataset.layout, []) == whole
    pq.write_table(rows, path)
    drop_from_scan(played_dataset.layout, {"b"})
    times = {time.stage: (time.rows, time.seconds, time.audio_s) for time in stage_times(played_dataset.layout, [])}
    assert times == {"scan: decode": (1, 2.0, 30.0), "scan: quality": (1, 0.5, 30.0)}


def test_bands_are_made_for_a_part_that_an_earlier_release_wrote_without(played_dataset):
    dag = scan_pass(played_dataset, scanned("a", "one"), scanned("b", "two", works=False), unit=0)
    path = played_dataset.root / "_songmill/scan/part-000000.parquet"
    with_them, part = read_scan(played_dataset.layout, dag), pq.read_table(path)
    assert [value is None for value in with_them["bands"].to_pylist()] == [False, True]
    pq.write_table(part.drop_columns(["bands"]), path)
    assert read_scan(played_dataset.layout, dag) == with_them


def test_rows_to_do_are_the_same_in_small_pieces(played_dataset, monkeypatch):
    rows = [scanned(name, name, loudness=-14.0 - 30 * (i % 3 == 0)) for i, name in enumerate("fbdace")]
    overrides = ("quality.min_loudness_lufs=-20", "resources.rows_per_shard=2")
    whole = played_dataset.todo(*rows, overrides=overrides)
    assert whole["row_id"].to_pylist() == ["f", "a", "b", "d", "c", "e"]
    assert whole["unit"].to_pylist() == [0, 0, 1, 1, 2, 2]
    assert whole["place"].to_pylist() == [0, 1] * 3
    monkeypatch.setattr(work_units, "_PIECE", 4)
    assert played_dataset.todo(*rows, overrides=overrides) == whole


def test_figures_count_committed_files_only(played_dataset):
    played_dataset.run(scanned("a", "one"), scanned("b", "one"))
    (shard,) = (played_dataset.root / "shards").iterdir()
    (played_dataset.root / "shards/train-000099.parquet").write_bytes(shard.read_bytes())
    assert collect_stats(played_dataset.layout).rows == {"kept": 1, "filtered": 1, "failed": 0, "total": 2}
    assert connect(played_dataset.layout).execute("select count(*) from tracks").fetchone() == (1,)


def test_licenses_that_are_not_allowed_are_turned_away_and_come_back(played_dataset):
    rows = [
        scanned("a", "1", license="CC-BY-4.0"),
        scanned("b", "2", license="CC-BY-NC-4.0"),
        scanned("c", "3", license=None),
        scanned("d", "4", license="MIT", works=False),
    ]
    run = played_dataset.run(*rows, overrides=("input.require_license=[CC-BY, CC0-1.0]",))
    verdicts = {row["row_id"]: row["verdict"] for row in _quarantine(run)}
    assert {id: (v["status"], v["stage"], v["reason"]) for id, v in verdicts.items()} == {
        "b": ("filtered", "license", "not_allowed"),
        "c": ("filtered", "license", "unknown"),
        "d": ("failed", "decode", "TruncatedAudio"),
    }
    assert verdicts["b"]["message"] == "license CC-BY-NC-4.0 is not one of CC-BY, CC0-1.0"
    assert run.measured == ["a"]
    run = played_dataset.run(*rows, overrides=("input.require_license=[CC, unknown]",))
    assert {row["row_id"] for row in _quarantine(run)} == {"d"}
    assert run.measured == ["a", "b", "c"]


def _quarantine(run: PlayedDataset) -> list[dict[str, Any]]:
    return connect(run.layout).sql("select row_id, verdict from quarantine").to_arrow_table().to_pylist()


def test_required_licenses_are_part_of_the_plan_where_there_are_any():
    plans = []
    for overrides in ((), ("input.require_license=[CC-BY]",), ("input.require_license=[CC-BY, MIT]",)):
        config = build_config(only=STAGES, overrides=overrides, input="songs", output=Path("x"))
        plans.append(make_plan(config, build_dag(config, {}, {})))
    assert len({plan.id for plan in plans}) == 3
    assert "~ require_license: None -> ['CC-BY']" in plans[0].differences(plans[1])


def test_marks_drop_rows_and_spare_them_and_can_be_taken_back(played_dataset):
    quiet, copy = scanned("b", "two", loudness=-60), scanned("c", "one")
    rows = [scanned("a", "one"), quiet, copy, scanned("d", "four", works=False)]
    played_dataset.run(*rows)
    assert played_dataset.verdicts == {
        "a": "kept",
        "b": "min_loudness_lufs",
        "c": "exact_duplicate",
        "d": "TruncatedAudio",
    }
    set_marks(played_dataset.layout, {"a": "drop"}, "sings out of tune")
    set_marks(played_dataset.layout, dict.fromkeys("bcd", "keep"))
    played_dataset.run(*rows)
    assert played_dataset.verdicts == {"a": "dropped", "b": "kept", "c": "kept", "d": "TruncatedAudio"}
    verdict = played_dataset.rows["a"]["verdict"]
    assert (verdict["status"], verdict["stage"], verdict["message"]) == ("filtered", "mark", "sings out of tune")
    set_marks(played_dataset.layout, dict.fromkeys("abcd"))
    played_dataset.run(*rows)
    assert played_dataset.verdicts == {
        "a": "exact_duplicate",
        "b": "min_loudness_lufs",
        "c": "kept",
        "d": "TruncatedAudio",
    }


def test_what_was_forgotten_does_not_come_back_under_another_name(played_dataset):
    bury(played_dataset.layout, {"x": "one"}, "takedown")
    played_dataset.run(scanned("a", "one"), scanned("b", "two"))
    assert played_dataset.verdicts == {"a": "forgotten", "b": "kept"}


def test_a_row_that_is_turned_away_again_is_counted_since_the_first_time(played_dataset):
    songs = scanned("a", "one", works=False), scanned("b", "two")
    played_dataset.run(*songs)
    first = played_dataset.ledger.rows["a"]
    assert (first.tries, first.first_seen is not None, played_dataset.ledger.rows["b"].first_seen) == (1, True, None)
    played_dataset.run(*songs, overrides=("quality.min_loudness_lufs=-20",))
    again = Ledger(played_dataset.layout).read().rows["a"]
    assert (again.tries, again.first_seen) == (2, first.first_seen)
