"""The process of a replica: a plain Ray actor, which Ray never restarts and whose tasks Ray never repeats.

It stays for the next pass, so that neither starting it nor what it has imported is paid for twice.
"""

from collections.abc import Mapping

import pyarrow as pa
import ray
from ray import ObjectRef

from pipeline.execution.fate import Fate
from pipeline.execution.flight_recorder import FlightRecorder, Station
from pipeline.execution.jit_cache import use_own_jit_cache
from pipeline.execution.operator import Operator, Report


@ray.remote(max_restarts=0, max_task_retries=0)
class Worker:
    """A replica of whichever operator the block at hand is for; the models of one at a time are in memory."""

    def __init__(self) -> None:
        use_own_jit_cache()
        self._recorder = FlightRecorder()
        self._job: ObjectRef | None = None
        self._operator: Operator | None = None

    def ready(self) -> Station:
        """Answers once the process is there: where it runs and where to find what it notes."""
        return self._recorder.station

    @ray.method(num_returns=2)
    def work(self, job: list[ObjectRef], block: pa.Table, fates: Mapping[str, Fate]) -> tuple[Report, pa.Table]:
        """Put a block through the operator; `job` is a list, or Ray would hand over all of it with every block."""
        try:
            return self._put_through(job, block, fates)
        finally:
            self._recorder.rest()

    def _put_through(self, job: list[ObjectRef], block: pa.Table, fates: Mapping[str, Fate]) -> tuple[Report, pa.Table]:
        if self._operator is None or job[0] != self._job:
            self._operator = None  # the last one's models go before the next one's come
            spec = ray.get(job[0])
            self._recorder.note(spec.nodes[0].name, block["row_id"].to_pylist())
            self._operator = Operator(spec, self._recorder)
            self._job = job[0]
        return self._operator(block, fates)
