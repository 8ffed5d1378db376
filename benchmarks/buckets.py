"""A dataset in a bucket whose requests take 30 ms more: how long it takes to commit, open and inspect it.

    python -m benchmarks.buckets [--units 1000] [--rows 64] [--delay-ms 30]

The server is moto's, behind a proxy that waits and counts requests. Prints Markdown for RESULTS.md.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.shard_files import write_rows
from pipeline.dataset.stats import collect_stats, connect
from schemas.commits import Commit, RowState, committed_files
from schemas.dataset import FOOTER_SCHEMA_VERSION, SCHEMA_VERSION, Layout
from schemas.files import file_digest
from schemas.storage.parquet import open_parquet
from tests.support.faulty_s3 import FaultyS3, faulty_s3
from tests.support.s3_server import BUCKET, s3_server
from tests.support.toy_dataset import write_dataset
from training.data import DataConfig, ShardStream, open_songs

_FOOTER = {FOOTER_SCHEMA_VERSION: str(SCHEMA_VERSION).encode()}
_BEATS = 400
_SONGS, _BATCHES, _STEPS = 512, 40, 10
_PLACE = f"s3://{BUCKET}/dataset"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=64, help="of a unit")
    parser.add_argument("--delay-ms", type=float, default=30)
    arguments = parser.parse_args()
    with s3_server() as server, faulty_s3(server) as proxy:
        import os

        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        proxy.delay_s = arguments.delay_ms / 1000
        print(f"{arguments.units} units of {arguments.rows} rows, {arguments.delay_ms:g} ms a request\n")
        print("| what | s | requests |\n| --- | --- | --- |")
        _timed(proxy, "commit all units", lambda: _commit(arguments.units, arguments.rows))
        layout = Layout.at(_PLACE)
        _timed(proxy, "open: the list of files that count", lambda: committed_files(layout))
        _timed(proxy, "open again", lambda: committed_files(layout))
        _timed(proxy, "inspect, counted anew", lambda: collect_stats(Layout.at(_PLACE)))
        _timed(proxy, "one row by its id", lambda: _one_row(Layout.at(_PLACE)))
        name = layout.shard_file(0)
        with open_parquet(layout.store, name) as file:
            footer = file.metadata
        _timed(proxy, "a row group", lambda: _row_group(layout, name, None))
        _timed(proxy, "a row group, the footer known", lambda: _row_group(layout, name, footer))
        print("\n| reader processes | batches of 4 songs a second | waiting, of a step of 1 s |\n| --- | --- | --- |")
        songs = _toy_songs()
        for readers in (0, 1, 2, 4):
            print(_read_ahead(songs, readers), flush=True)


def _toy_songs() -> DataConfig:
    """Songs with random features, in the bucket."""
    layout = Layout.at(f"{_PLACE}-of-songs")
    with tempfile.TemporaryDirectory() as folder, layout.store.writing():
        songs = write_dataset(Path(folder) / "songs", _SONGS, shards=_SONGS // 64, row_group=4)
        files = [path for path in songs.rglob("*") if path.is_file()]
        layout.store.publish({path.relative_to(songs).as_posix(): path.read_bytes() for path in files})
    return DataConfig(datasets=(layout.url,), ssl=("whisper_base",), batch_size=4)


def _read_ahead(config: DataConfig, readers: int) -> str:
    """How fast batches come, and how long a trainer with steps of a second would wait for them."""
    batches = iter(ShardStream(open_songs(config), config, workers=readers))
    next(batches)
    start = time.monotonic()
    for _ in range(_BATCHES):
        next(batches)
    rate = _BATCHES / (time.monotonic() - start)
    waited = 0.0
    for _ in range(_STEPS):
        time.sleep(1)
        asked = time.monotonic()
        next(batches)
        waited += time.monotonic() - asked
    return f"| {readers} | {rate:.1f} | {waited / (waited + _STEPS):.1%} |"


def _timed(proxy: FaultyS3, what: str, act: Callable[[], object]) -> None:
    requests, start = len(proxy.seen), time.monotonic()
    act()
    print(f"| {what} | {time.monotonic() - start:.2f} | {len(proxy.seen) - requests} |", flush=True)


def _commit(units: int, rows: int) -> None:
    layout = Layout.at(_PLACE)
    with layout.store.writing():
        ledger = Ledger(layout).open()
        for unit in range(units):
            path = layout.store.scratch / f"{unit}.parquet"
            table = _table(unit, rows)
            write_rows(table, path, _FOOTER)
            states = {row_id: RowState("kept", row_id, "basis") for row_id in table["row_id"].to_pylist()}
            name = layout.shard_file(unit)
            commit = Commit(unit=unit, plan="plan", files={name: file_digest(path)}, timings={}, rows=states)
            ledger.add(commit, {name: path})
        layout.store.publish({layout.plan: b"{}"})


def _table(unit: int, rows: int) -> pa.Table:
    numbers = pa.array(range(unit * rows, (unit + 1) * rows))
    ids = pc.binary_join_element_wise("row", numbers.cast(pa.string()), "-")
    return pa.table(
        {
            "row_id": ids,
            "track_id": ids,
            "license": ["CC-BY-4.0"] * rows,
            "audio": [{"duration_s": 180.0 + i, "codec": "mp3", "model": "ffmpeg"} for i in range(rows)],
            "rhythm": [
                {
                    "bpm": 100.0 + i,
                    "confidence": 0.9,
                    "beats_s": [unit + 0.5 * j + i for j in range(_BEATS)],
                    "model": "m",
                }
                for i in range(rows)
            ],
            "verdict": [{"status": "kept", "stage": None, "reason": None} for _ in range(rows)],
        }
    )


def _one_row(layout: Layout) -> None:
    with connect(layout) as connection:
        connection.sql("select * from tracks where row_id = 'row-7'").fetchall()


def _row_group(layout: Layout, name: str, footer: object) -> None:
    with open_parquet(layout.store, name, footer) as file:  # type: ignore[arg-type]
        file.read_row_group(0)


if __name__ == "__main__":
    main()
