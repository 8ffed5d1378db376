"""The one configuration of a curation run: a YAML file, command-line overrides, one pydantic model."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schemas.storage.location import Place
from schemas.storage.options import StorageOptions


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors, so that a misspelt key is not silently ignored."""

    model_config = ConfigDict(extra="forbid")


class StageConfig(BaseModel):
    """One stage: its engine and that engine's parameters."""

    model_config = ConfigDict(extra="allow")

    engine: str | None = Field(None, description="a name from the registry, or `package.module:Class`")

    @property
    def params(self) -> dict[str, Any]:
        """Everything but the engine."""
        return dict(self.model_extra or {})


class DedupConfig(Section):
    """Near-duplicate search over the whole scan."""

    threshold: float = Field(0.4, gt=0, le=1, description="least similarity at which a row counts as a duplicate")


class InputConfig(Section):
    """Where songs come from, and defaults for what they do not state themselves."""

    path: str = Field(description="folder, glob or manifest (.jsonl, .csv, .parquet); local or any fsspec URI")
    license: str | None = Field(None, description="SPDX id or URL of songs without one")
    source: str | None = Field(None, description="source of songs without one")
    require_license: list[str] | None = Field(
        None, description="SPDX ids or families of them (CC-BY: all versions) to keep; `unknown` for songs without one"
    )


class WorkerBounds(Section):
    """How many workers a CPU operator has. Between the bounds it has one per core, as nodes come and go."""

    min: int = Field(1, ge=1, description="start as many, even if they have to share cores")
    max: int | None = Field(None, ge=1, description="never start more; default as many as there are cores")

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerBounds":
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max ({self.max}) is less than min ({self.min})")
        return self


class ResourceConfig(Section):
    """How the run is distributed. None of this affects the results."""

    rows_per_shard: int = Field(64, ge=1, description="most songs per shard")
    rows_per_block: int = Field(1, ge=1, description="songs per task: the unit of parallel work")
    rows_per_scan_part: int = Field(256, ge=1)
    workers: WorkerBounds = Field(WorkerBounds(), description="workers of each CPU operator: a number, or bounds")
    wait_for_nodes_s: float = Field(
        600, ge=0, description="how long a run waits for a node that a stage needs and an autoscaler may bring"
    )
    gpus: dict[str, float] = Field(
        {}, description="stage -> share of a GPU that it takes of the operator it runs in; 0 leaves it on the CPU"
    )
    max_attempts: int = Field(3, ge=1, description="worker deaths a song may cause before it is set aside")
    ray_address: str | None = Field(None, description="an existing cluster; default RAY_ADDRESS or a local one")

    @model_validator(mode="before")
    @classmethod
    def _with_bounds(cls, given: Any) -> Any:
        """A number of workers means exactly that many; `replicas` is what it was called before."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        replicas = given.pop("replicas", None)
        workers = given.get("workers", replicas)
        if isinstance(workers, int):
            given["workers"] = {"min": workers, "max": workers}
        return given


Thresholds = dict[str, float]


class CurateConfig(Section):
    """The complete configuration of `songmill curate`."""

    input: InputConfig
    output: Place = Field(description="the dataset: a folder, or a URL with s3://, gs:// or az://")
    profile: Literal["small", "full"] = "small"
    lyrics: Path | None = Field(None, description="lyric library (Parquet) for the lyrics stage")
    stages: dict[str, StageConfig] = Field(description="the stages of the DAG, by name")
    gates: dict[str, Thresholds] = Field({}, description="column -> {min_FIELD or max_FIELD: bound}")
    dedup: DedupConfig | None = DedupConfig()
    resources: ResourceConfig = ResourceConfig()
    storage: StorageOptions = Field(StorageOptions(), description="how the bucket of `output` is reached")

    @field_validator("gates", mode="before")
    @classmethod
    def _without_switched_off_thresholds(cls, gates: Any) -> Any:
        """`null` switches a profile's threshold off."""
        if not isinstance(gates, dict):
            return gates
        return {
            column: {bound: value for bound, value in (thresholds or {}).items() if value is not None}
            for column, thresholds in gates.items()
        }
