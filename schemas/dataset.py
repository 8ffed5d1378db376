"""The layout of a dataset folder, and the keys in a shard's footer."""

import re
from dataclasses import dataclass
from pathlib import Path

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
    """A folder that holds no dataset, or none with rows yet; the message names it and says what to do."""


@dataclass(frozen=True)
class Layout:
    """Paths of one dataset folder. A unit is what is committed together: one shard, its features, its quarantine."""

    root: Path

    def require(self) -> None:
        """Refuse a folder without a single committed row.

        Raises:
            NoDataset: it is one.
        """
        if self.plan.is_file():
            return
        if self.config.is_file():
            raise NoDataset(
                f"{self.root} holds no rows yet, for its first run has not come so far: songmill curate {self.root} "
                "goes on with it"
            )
        raise NoDataset(
            f"{self.root} is no songmill dataset (it has no _songmill/plan.json): give a folder that "
            "`songmill curate` wrote"
        )

    def name_of(self, path: Path) -> str:
        """A path inside the dataset as commit records name it: relative to the root."""
        return str(path.relative_to(self.root))

    @property
    def card(self) -> Path:
        """The dataset card."""
        return self.root / "README.md"

    @property
    def shards(self) -> Path:
        """Folder of the kept rows."""
        return self.root / "shards"

    @property
    def quarantine(self) -> Path:
        """Folder of the filtered and failed rows."""
        return self.root / "quarantine"

    @property
    def state(self) -> Path:
        """Folder of everything that only songmill reads."""
        return self.root / "_songmill"

    @property
    def plan(self) -> Path:
        """The plan that made the dataset."""
        return self.state / "plan.json"

    @property
    def config(self) -> Path:
        """The configuration of the run that wrote the dataset last."""
        return self.state / "config.json"

    @property
    def tombstones(self) -> Path:
        """Forgotten rows, a table of schema `TOMBSTONES`; absent if there are none."""
        return self.state / "forgotten.parquet"

    @property
    def stats(self) -> Path:
        """Statistics of the dataset as of the last run."""
        return self.state / "stats.json"

    @property
    def marks(self) -> Path:
        """Marks on single rows, a table of schema `MARKS`; absent if there are none."""
        return self.state / "marks.parquet"

    @property
    def moves(self) -> Path:
        """Renames that a run has in progress; see `pipeline.curation.moves`."""
        return self.state / "moves.json"

    @property
    def scan(self) -> Path:
        """Folder of the scan table's parts."""
        return self.state / "scan"

    @property
    def commits(self) -> Path:
        """Folder of the commit records, one per unit."""
        return self.state / "commits"

    @property
    def logs(self) -> Path:
        """Folder of the output of Ray and libraries during runs."""
        return self.state / "logs"

    @property
    def runs(self) -> Path:
        """Folder of the records of runs, one folder per run."""
        return self.state / "runs"

    @property
    def temporary(self) -> Path:
        """Folder of files that have not been committed yet."""
        return self.state / "tmp"

    def features(self, name: str) -> Path:
        """Folder of one bulk feature."""
        return self.root / "features" / name

    def shard_file(self, unit: int) -> Path:
        """The shard of a unit."""
        return self.shards / f"train-{unit:06d}.parquet"

    def feature_file(self, name: str, unit: int) -> Path:
        """One bulk feature of a unit."""
        return self.features(name) / f"train-{unit:06d}.parquet"

    def quarantine_file(self, unit: int) -> Path:
        """The quarantine of a unit."""
        return self.quarantine / f"part-{unit:06d}.parquet"

    def scan_file(self, unit: int) -> Path:
        """A part of the scan table."""
        return self.scan / f"part-{unit:06d}.parquet"

    def commit_file(self, unit: int) -> Path:
        """The commit record of a unit."""
        return self.commits / f"{unit:06d}.json"


def unit_of(path: Path) -> int | None:
    """The unit that a shard, feature, quarantine or scan file belongs to; None for any other file."""
    match = _UNIT.match(path.name)
    return int(match.group(1)) if match else None
