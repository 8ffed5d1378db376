"""What the stages of a dataset took: of the scan from its parts, of the curation from the commit records."""

from collections import defaultdict
from collections.abc import Iterable

import pyarrow.parquet as pq

from pipeline.duck import new_connection
from pipeline.ledger import Record, StageTime
from schemas.dataset import Layout


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
        for stage, time in record.timings.items():
            totals[stage].rows += time.rows
            totals[stage].seconds += time.seconds
            totals[stage].audio_s += time.audio_s
    return _scan_times(layout) + [Throughput(stage=stage, **time.model_dump()) for stage, time in totals.items()]


def _scan_times(layout: Layout) -> list[Throughput]:
    paths = sorted(layout.scan.glob("part-*.parquet"))
    if not paths:
        return []
    duration = "audio.duration_s" if "audio" in pq.read_schema(paths[0]).names else "0"
    found = (
        new_connection()
        .read_parquet([str(path) for path in paths])
        .select(f"unnest(timing) as step, {duration} as duration_s")
        .aggregate("step.stage as stage, count(*), sum(step.seconds), coalesce(sum(duration_s), 0)")
        .order("stage")
        .fetchall()
    )
    return [
        Throughput(stage=f"scan: {stage}", rows=rows, seconds=seconds, audio_s=audio_s)
        for stage, rows, seconds, audio_s in found
    ]
