"""Count what a run did to the rows of a dataset: which it processed, which it only updated, which it left unchanged."""

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from schemas.commits import Commit


class Changes:
    """Counts distinct rows: a row that occurs in several units or passes counts once."""

    def __init__(self) -> None:
        self._worked_on: list[pa.Array] = []
        self._updated: list[pa.Array] = []

    def scanned(self, rows: pa.Table) -> None:
        """Count rows that the scan has to read."""
        self._worked_on += rows["row_id"].chunks

    def committed(self, commit: Commit, old: Commit | None, measured: Iterable[str]) -> None:
        """Count the rows of a unit; call it before the unit is committed.

        Args:
            commit: the unit's record.
            old: record of the unit it replaces, if any.
            measured: ids of its rows that a stage ran on.
        """
        before = old.rows if old else {}
        self._worked_on.append(_ids([*measured, *(row_id for row_id in commit.rows if row_id not in before)]))
        self._updated.append(
            _ids(
                [
                    row_id
                    for row_id, row in commit.rows.items()
                    if (was := before.get(row_id))
                    and (was.status, was.basis, was.mark) != (row.status, row.basis, row.mark)
                ]
            )
        )

    @property
    def worked_on(self) -> int:
        """Number of rows that were scanned, that a stage ran on, or that are new in the dataset."""
        return _distinct(self._worked_on)

    @property
    def updated(self) -> int:
        """Number of other rows whose verdict, identity columns or mark changed."""
        return _distinct([*self._worked_on, *self._updated]) - self.worked_on


def _ids(row_ids: Sequence[str]) -> pa.Array:
    return pa.array(row_ids, pa.string())


def _distinct(arrays: Sequence[pa.Array]) -> int:
    return pc.count_distinct(pa.chunked_array(arrays, pa.string())).as_py()  # type: ignore[no-any-return]
