"""Wall times of the stages of a dataset: scan stages from the scan parts' footers, others from the commit records."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from pipeline.dataset.scan_parts import of_each_part, scan_parts
from schemas.commits import Record, StageTime
from schemas.dataset import FOOTER_TIMINGS, Layout
from schemas.storage.parquet import open_parquet

_TIMINGS = TypeAdapter(dict[str, StageTime])


class Throughput(StageTime):
    """Wall time and speed of a stage."""

    stage: str

    @property
    def speed(self) -> float:
        """Seconds of audio per second of one worker."""
        return self.audio_s / self.seconds if self.seconds else 0.0


def stage_times(layout: Layout, records: Iterable[Record]) -> list[Throughput]:
    """Times of every stage of both passes; scan stages are named "scan: STAGE", since curation runs decode again."""
    totals: defaultdict[str, StageTime] = defaultdict(StageTime)
    for record in records:
        _add(totals, record.timings)
    return _scan_times(layout) + [Throughput(stage=stage, **time.model_dump()) for stage, time in totals.items()]


def _scan_times(layout: Layout) -> list[Throughput]:
    totals: defaultdict[str, StageTime] = defaultdict(StageTime)
    for times in of_each_part(lambda name: _part_times(layout, name), scan_parts(layout)):
        _add(totals, times)
    return [Throughput(stage=f"scan: {stage}", **time.model_dump()) for stage, time in sorted(totals.items())]


def _part_times(layout: Layout, name: str) -> Mapping[str, StageTime]:
    """Total times in a part's footer; parts of earlier releases have only the times of each row."""
    with open_parquet(layout.store, name) as file:
        if in_footer := (file.schema_arrow.metadata or {}).get(FOOTER_TIMINGS):
            return _TIMINGS.validate_json(in_footer)
        there = [column for column in ("timing", "audio") if column in file.schema_arrow.names]
        return row_times(file.read(columns=there))


def row_times(rows: pa.Table) -> dict[str, StageTime]:
    """Stage -> total time over these rows, from their columns timing and, if present, audio."""
    totals: defaultdict[str, StageTime] = defaultdict(StageTime)
    audio: list[Any] = rows["audio"].to_pylist() if "audio" in rows.column_names else [None] * rows.num_rows
    for steps, facts in zip(rows["timing"].to_pylist(), audio, strict=True):
        for step in steps or []:
            total = totals[step["stage"]]
            total.rows += 1
            total.seconds += step["seconds"]
            total.audio_s += (facts or {}).get("duration_s") or 0.0
    return dict(totals)


def _add(totals: defaultdict[str, StageTime], times: Mapping[str, StageTime]) -> None:
    for stage, time in times.items():
        totals[stage].rows += time.rows
        totals[stage].seconds += time.seconds
        totals[stage].audio_s += time.audio_s
