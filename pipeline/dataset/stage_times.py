"""What the stages of a dataset took: of the scan from its parts' footers, of the curation from the commit records."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from schemas.commits import Record, StageTime
from schemas.dataset import FOOTER_TIMINGS, Layout

_TIMINGS = TypeAdapter(dict[str, StageTime])


class Throughput(StageTime):
    """Wall time of a stage, and how fast it went."""

    stage: str

    @property
    def speed(self) -> float:
        """Seconds of audio a second of one worker."""
        return self.audio_s / self.seconds if self.seconds else 0.0


def stage_times(layout: Layout, records: Iterable[Record]) -> list[Throughput]:
    """Every stage of both passes; the scan's decode is listed apart from the curation's, which decodes again."""
    totals: defaultdict[str, StageTime] = defaultdict(StageTime)
    for record in records:
        _add(totals, record.timings)
    return _scan_times(layout) + [Throughput(stage=stage, **time.model_dump()) for stage, time in totals.items()]


def _scan_times(layout: Layout) -> list[Throughput]:
    totals: defaultdict[str, StageTime] = defaultdict(StageTime)
    for path in sorted(layout.scan.glob("part-*.parquet")):
        _add(totals, _part_times(path))
    return [Throughput(stage=f"scan: {stage}", **time.model_dump()) for stage, time in sorted(totals.items())]


def _part_times(path: Path) -> Mapping[str, StageTime]:
    """What stands in the part's footer; parts of earlier releases say it row by row only."""
    file = pq.ParquetFile(path)
    if told := (file.schema_arrow.metadata or {}).get(FOOTER_TIMINGS):
        return _TIMINGS.validate_json(told)
    names = [name for name in ("timing", "audio") if name in file.schema_arrow.names]
    return row_times(file.read(columns=names))


def row_times(rows: pa.Table) -> dict[str, StageTime]:
    """What stages took over these rows: columns timing and, if there is one, audio."""
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
