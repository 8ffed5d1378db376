"""Write the files of a committed unit again with other verdicts or fewer rows; nothing is measured.

Rows keep their order. A feature file follows its shard: the same rows, the new shard's digest in its footer.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.ledger import Commit, Ledger, RowState, file_digest
from pipeline.sink import FEATURE_ROW_GROUP, write_rows
from schemas.dataset import FOOTER_PLAN, FOOTER_SHARD_DIGEST, Layout


def read_unit(layout: Layout, commit: Commit) -> pa.Table:
    """Every row of a unit, the kept ones first; the footer's metadata in that of the schema."""
    paths = [layout.root / name for name in commit.files]
    parts = sorted(path for path in paths if path.parent in (layout.shards, layout.quarantine))
    tables = [pq.read_table(path) for path in sorted(parts, key=lambda path: path.parent != layout.shards)]
    return pa.concat_tables([tables[0], *(table.cast(tables[0].schema) for table in tables[1:])])


def rewrite_unit(ledger: Ledger, old: Commit, rows: pa.Table, states: Mapping[str, RowState], plan: str) -> None:
    """Commit rows of a unit in place of the unit.

    Args:
        ledger: of the dataset.
        old: the unit.
        rows: those of `read_unit` that are to stay, with their verdicts as they are to be.
        states: their states.
        plan: that they are judged by.
    """
    layout, unit = ledger.layout, ledger.next_unit
    footer = {**(rows.schema.metadata or {}), FOOTER_PLAN: plan.encode()}
    kept = pc.equal(pc.struct_field(rows["verdict"], "status"), "kept")
    files: dict[str, Path] = {}
    if (shard := rows.filter(kept)).num_rows:
        path = files[_inside(layout, layout.shard_file(unit))] = _temporary(layout)
        write_rows(shard, path, footer)
        files |= _features(layout, old, unit, shard["row_id"], file_digest(path))
    if (rejected := rows.filter(pc.invert(kept))).num_rows:
        path = files[_inside(layout, layout.quarantine_file(unit))] = _temporary(layout)
        write_rows(rejected, path, footer)
    commit = old.model_copy(
        update={
            "unit": unit,
            "plan": plan,
            "files": {final: file_digest(path) for final, path in files.items()},
            "rows": dict(states),
            "supersedes": old.unit,
        }
    )
    ledger.rewrite(commit, files)


def _features(layout: Layout, old: Commit, unit: int, row_ids: pa.ChunkedArray, shard_digest: str) -> dict[str, Path]:
    """The unit's features of the rows of its new shard, in their order."""
    files = {}
    for path in (layout.root / name for name in old.files if name.startswith("features/")):
        rows = pq.read_table(path)
        rows = rows.take(pc.index_in(row_ids, rows["row_id"].combine_chunks()))
        temporary = files[_inside(layout, layout.feature_file(path.parent.name, unit))] = _temporary(layout)
        footer = {**(rows.schema.metadata or {}), FOOTER_SHARD_DIGEST: shard_digest.encode()}
        write_rows(rows, temporary, footer, FEATURE_ROW_GROUP)
    return files


def _temporary(layout: Layout) -> Path:
    return layout.temporary / f"rewritten-{uuid.uuid4().hex}.parquet"


def _inside(layout: Layout, path: Path) -> str:
    return str(path.relative_to(layout.root))
