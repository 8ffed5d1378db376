"""The layout of a dataset, and the keys in a shard's footer."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from schemas.storage.options import StorageOptions
    from schemas.storage.store import Store

SCHEMA_VERSION = 1

# Keys of a shard's Parquet footer.
FOOTER_SCHEMA_VERSION = b"songmill.schema_version"
FOOTER_PLAN = b"songmill.plan"
FOOTER_FINGERPRINTS = b"songmill.fingerprints"
FOOTER_TIMINGS = b"songmill.timings"  # in a part of the scan: how long its stages took, as in a commit record
FOOTER_SHARD_DIGEST = b"songmill.shard_sha256"  # in a feature file: the shard whose rows it holds

# Columns too bulky for the shard itself; they are in files beside it, with the same rows in the same order.
FEATURES = ("latents", "ssl", "text_embedding", "preview")

_UNIT = re.compile(r"^(?:train|part)-(\d{6,})\.parquet$")


class NoDataset(Exception):  # noqa: N818 - it says what kind of problem
    """A place that holds no dataset, or none with rows yet; the message names it and says what to do."""


@dataclass(frozen=True)
class Layout:
    """Names of a dataset's files, and the store that has them.

    A unit is what is committed together: one shard, its features, its quarantine.

    Attributes:
        card: the dataset card.
        shards: folder of the kept rows.
        quarantine: folder of the filtered and failed rows.
        state: folder of everything that only songmill reads.
        plan: the plan that made the dataset.
        config: the configuration of the run that wrote the dataset last.
        tombstones: forgotten rows, a table of schema `TOMBSTONES`; absent if there are none.
        stats: statistics of the dataset as of the last run.
        marks: marks on single rows, a table of schema `MARKS`; absent if there are none.
        moves: renames that a run has in progress; see `pipeline.curation.moves`.
        scan: folder of the scan table's parts.
        commits: folder of the commit records, one per unit.
        runs: folder of the records of runs, one folder per run.
    """

    store: "Store"

    card: ClassVar[str] = "README.md"
    shards: ClassVar[str] = "shards"
    quarantine: ClassVar[str] = "quarantine"
    state: ClassVar[str] = "_songmill"
    plan: ClassVar[str] = "_songmill/plan.json"
    config: ClassVar[str] = "_songmill/config.json"
    tombstones: ClassVar[str] = "_songmill/forgotten.parquet"
    stats: ClassVar[str] = "_songmill/stats.json"
    marks: ClassVar[str] = "_songmill/marks.parquet"
    moves: ClassVar[str] = "_songmill/moves.json"
    scan: ClassVar[str] = "_songmill/scan"
    commits: ClassVar[str] = "_songmill/commits"
    runs: ClassVar[str] = "_songmill/runs"

    @classmethod
    def at(cls, place: str | Path, options: "StorageOptions | None" = None) -> "Layout":
        """The dataset in a folder or at the URL of a bucket; it need not exist yet.

        Raises:
            ValueError: it is another URL.
        """
        from schemas.storage.location import open_store  # the command line is there before pydantic is

        return cls(open_store(place, options))

    @property
    def url(self) -> str:
        """The place, as users name it."""
        return self.store.url

    def require(self) -> None:
        """Refuse a place without a single committed row.

        Raises:
            NoDataset: it is one.
        """
        if self.store.exists(self.plan):
            return
        if self.store.exists(self.config):
            raise NoDataset(
                f"{self.url} holds no rows yet, for its first run has not come so far: songmill curate {self.url} "
                "goes on with it"
            )
        raise NoDataset(
            f"{self.url} is no songmill dataset (it has no {self.plan}): give a folder or a bucket's URL that "
            "`songmill curate` wrote"
        )

    def features(self, name: str) -> str:
        """Folder of one bulk feature."""
        return f"features/{name}"

    def shard_file(self, unit: int) -> str:
        """The shard of a unit."""
        return f"{self.shards}/train-{unit:06d}.parquet"

    def feature_file(self, name: str, unit: int) -> str:
        """One bulk feature of a unit."""
        return f"{self.features(name)}/train-{unit:06d}.parquet"

    def quarantine_file(self, unit: int) -> str:
        """The quarantine of a unit."""
        return f"{self.quarantine}/part-{unit:06d}.parquet"

    def scan_file(self, unit: int) -> str:
        """A part of the scan table."""
        return f"{self.scan}/part-{unit:06d}.parquet"

    def commit_file(self, unit: int) -> str:
        """The commit record of a unit."""
        return f"{self.commits}/{unit:06d}.json"


def unit_of(name: str) -> int | None:
    """The unit that a shard, feature, quarantine or scan file belongs to; None for any other file."""
    match = _UNIT.match(name.rpartition("/")[2])
    return int(match.group(1)) if match else None


def folder_of(name: str) -> str:
    """The folder that a file of a dataset is in."""
    return name.rpartition("/")[0]
