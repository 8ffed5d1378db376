"""The DAG of a run: its stages in dependency order, type checks of their columns, and their grouping into operators.

This imports class definitions only and loads no models, so that every configuration error is found before a run starts.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import UsageProblem
from pipeline.planning.fusion import Kind, fuse, fusion_order
from pipeline.planning.gates import Gate, GateError, build_gates
from schemas import columns
from schemas.config import CurateConfig, StageConfig
from schemas.files import file_digest
from stages import pcm
from stages.base import Params, Stage, Weights
from stages.libraries import Library
from stages.registry import ENGINES, recorded_name, stage_class

# Audio at the file's own sampling rate exists in the scan pass only; decode and all stages that read it run there.
NATIVE = "native"
# Column names that no stage may own: the pipeline itself writes them.
RESERVED = (
    *("dedup", "flags", "verdict", "timing", "size", "stamp", "bands", "part"),
    *("unit", "place", "unit_rows", "supersedes"),
)


class DagError(UsageProblem):
    """An invalid DAG; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("the DAG is invalid:\n" + "\n".join(f"  - {problem}" for problem in problems))
        self.problems = problems


@dataclass(frozen=True)
class Node:
    """A stage as configured for this run; picklable, so that workers can build the stage themselves."""

    name: str
    engine: str | None
    params: Params
    weights: Mapping[str, Weights]
    fingerprint: str
    gpus: float = 0.0
    concurrency: int = 0

    @property
    def kind(self) -> Kind:
        """What it runs on: a core, a GPU, or a server that it waits for."""
        return _kind(self.gpus, self.concurrency)

    @cached_property
    def stage_type(self) -> type[Stage]:
        """The stage's class."""
        return stage_class(self.name, self.engine)

    def build(self) -> Stage:
        """A new instance of the stage; `setup` has not been called."""
        stage = self.stage_type(self.params)
        stage.device = "cuda" if self.gpus else "cpu"
        return stage

    @property
    def column(self) -> str:
        """The column it owns."""
        return self.stage_type.column


@dataclass(frozen=True)
class Stored:
    """A column that the dataset already stores, as input of stages that are added later: its type and fingerprint."""

    type: pa.DataType
    fingerprint: str


@dataclass(frozen=True)
class Dag:
    """Validated stages in execution order, and the gates on their columns."""

    nodes: tuple[Node, ...]
    gates: tuple[Gate, ...]

    @property
    def scan(self) -> tuple[Node, ...]:
        """Stages of the scan pass, which reads every file."""
        return tuple(n for n in self.nodes if NATIVE in n.stage_type.working or NATIVE in n.stage_type.reads)

    @property
    def curation(self) -> tuple[Node, ...]:
        """Stages of the curation pass, which processes the remaining rows; includes decode again, for its PCM."""
        return tuple(n for n in self.nodes if NATIVE not in n.stage_type.reads)

    @property
    def operators(self) -> tuple[tuple[Node, ...], ...]:
        """Curation stages grouped into operators, see `pipeline.planning.fusion`."""
        return fuse(self.curation)

    def working_between(self, operator: int) -> list[pa.Field]:
        """Working columns written by this operator or an earlier one that a later one reads."""
        made = [node for group in self.operators[: operator + 1] for node in group]
        later = [node.stage_type for group in self.operators[operator + 1 :] for node in group]
        read = {column for stage in later for column in (*stage.reads, *stage.reads_if_present)}
        return [pa.field(name, t) for node in made for name, t in node.stage_type.working.items() if name in read]

    def store_bytes(self, seconds: float) -> list[int]:
        """Bytes of PCM and stems that each operator but the last puts into the object store for a song.

        Args:
            seconds: length of the song.
        """
        frame_bytes = pcm.CHANNELS * 2
        sound = [[field.type for field in self.working_between(i)].count(pcm.PCM) for i in range(len(self.operators))]
        return [int(columns * seconds * pcm.RATE_HZ * frame_bytes) for columns in sound[:-1]]

    @property
    def column_types(self) -> dict[str, pa.DataType]:
        """Every persisted column that stages write, in DAG order."""
        return {node.column: node.stage_type.type for node in self.nodes}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Column -> fingerprint of the stage that made it."""
        return {node.column: node.fingerprint for node in self.nodes}


def build_dag(
    config: CurateConfig,
    models: Mapping[str, Weights],
    missing: Mapping[str, str],
    stored: Mapping[str, Stored] = MappingProxyType({}),
    problems: Sequence[str] = (),
) -> Dag:
    """Order the configured stages and validate them.

    Args:
        config: the run's configuration.
        models: verified entries of the model store, by name.
        missing: entries that a stage needs and the store lacks, each with the fix.
        stored: columns that the rows already have, so that no stage has to write them.
        problems: problems found elsewhere, to be reported together with those found here.

    Raises:
        DagError: a stage reads a column that no stage writes, types differ, two stages own one column, there is a
            dependency cycle, a model is missing, or parameters or thresholds are invalid. It lists all problems at
            once.
    """
    stages, unfit = _instantiate(config.stages)
    problems = [*problems, *unfit]
    problems += _ownership_problems(stages)
    written = {name: column.type for name, column in stored.items()} | _written_types(stages)
    for stage in stages.values():
        problems += _read_problems(stage, written)
        problems += [f"stage {stage.name!r}: {missing[m]}" for m in stage.models if m in missing]
        problems += [f"stage {stage.name!r}: no such file {f}" for f in stage.files if not f.is_file()]
    unknown = sorted({*config.resources.gpus} - {*config.stages, *ENGINES})
    problems += [f"resources.gpus: no stage named {name!r}" for name in unknown]
    gates, gate_problems = _gates(config, stages)
    problems += gate_problems
    order, cycle = fusion_order(stages, lambda stage: _kind(_gpus(stage, config), stage.concurrency))
    problems += cycle
    if problems:
        raise DagError(problems)
    return Dag(_nodes(order, config, models, stored), gates)


def configured_stages(config: CurateConfig) -> dict[str, Stage]:
    """The stages of a run by name, without `setup`; stages that cannot be built are left out (see `build_dag`)."""
    return _instantiate(config.stages)[0]


def wanted_models(config: CurateConfig) -> dict[str, list[str]]:
    """Model store entry -> names of the stages that need it."""
    wanted: dict[str, list[str]] = {}
    for stage in configured_stages(config).values():
        for model in stage.models:
            wanted.setdefault(model, []).append(stage.name)
    return wanted


def wanted_libraries(config: CurateConfig) -> dict[Library, list[str]]:
    """Optional library (beyond the base dependencies) -> names of the stages that need it."""
    wanted: dict[Library, list[str]] = {}
    for stage in configured_stages(config).values():
        for library in stage.libraries:
            wanted.setdefault(library, []).append(stage.name)
    return wanted


def _instantiate(configs: Mapping[str, StageConfig]) -> tuple[dict[str, Stage], list[str]]:
    stages: dict[str, Stage] = {}
    problems: list[str] = []
    for name, config in configs.items():
        try:
            kind = stage_class(name, config.engine)
            stages[name] = kind(_absolute(kind.Params.model_validate(config.params)))
        except (KeyError, ImportError, AttributeError, TypeError) as error:
            problems.append(f"stage {name!r}: {error.args[0] if error.args else error}")
        except ValidationError as error:
            problems += [
                f"stage {name!r}: parameter {_parameter(e)}: {e['msg']}{_remedy(name, e)} "
                f"(it has {', '.join(kind.Params.model_fields) or 'none'})"
                for e in error.errors()
            ]
    return stages, problems


def _absolute(params: Params) -> Params:
    """Make the given paths absolute, independent of the working directory; defaults are absolute or empty already."""
    given = {name: getattr(params, name) for name in params.model_fields_set}
    paths = {name: value.absolute() for name, value in given.items() if isinstance(value, Path)}
    return params.model_copy(update=paths)


def _parameter(error: ErrorDetails) -> str:
    return ".".join(map(str, error["loc"]))


def _remedy(stage: str, error: ErrorDetails) -> str:
    return f"; give --set {stage}.{_parameter(error)}=..." if error["type"] == "missing" else ""


def _ownership_problems(stages: Mapping[str, Stage]) -> list[str]:
    owner = dict.fromkeys(columns.IDENTITY.names, "the manifest") | dict.fromkeys(RESERVED, "songmill itself")
    problems = []
    for name, stage in stages.items():
        if stage.name != name:
            problems.append(f"stage {name!r}: its class declares the name {stage.name!r}; configure it under that name")
        for column in (stage.column, *stage.working):
            if column in owner:
                problems.append(f"column {column!r} is owned by {owner[column]} and by stage {name!r}")
            owner.setdefault(column, f"stage {name!r}")
    return problems


def _written_types(stages: Mapping[str, Stage]) -> dict[str, pa.DataType]:
    written = {field.name: field.type for field in columns.IDENTITY}
    for stage in stages.values():
        written[stage.column] = stage.type
        written.update(stage.working)
    return written


def _read_problems(stage: Stage, written: Mapping[str, pa.DataType]) -> list[str]:
    problems = []
    for column, wanted in {**stage.reads, **stage.reads_if_present}.items():
        if column not in written:
            if column in stage.reads:
                problems.append(f"stage {stage.name!r} reads column {column!r}, which no stage writes{_hint(column)}")
        elif mismatch := _mismatch(wanted, written[column]):
            problems.append(f"stage {stage.name!r} reads column {column!r} as {wanted}: {mismatch}")
    return problems


def _hint(column: str) -> str:
    for name in ENGINES:
        try:
            stage = stage_class(name)
        except ImportError:
            continue
        if column == stage.column or column in stage.working:
            return f" (add stage {name!r})"
    return ""


def _mismatch(wanted: pa.DataType, written: pa.DataType) -> str | None:
    if not (pa.types.is_struct(wanted) and pa.types.is_struct(written)):
        return None if wanted == written else f"it is written as {written}"
    have = {field.name: field.type for field in written}
    for field in wanted:
        if field.name not in have:
            return f"it is written without field {field.name!r}"
        if inner := _mismatch(field.type, have[field.name]):
            return f"field {field.name!r}: {inner}"
    return None


def _gates(config: CurateConfig, stages: Mapping[str, Stage]) -> tuple[tuple[Gate, ...], list[str]]:
    types = {s.column: s.type for s in stages.values()}
    if "fingerprint" in types and config.gates.get("fingerprint"):
        return (), ["gates.fingerprint: fingerprints are compared with each other and have no thresholds"]
    try:
        return build_gates(config.gates, types), []
    except GateError as error:
        return (), [str(error)]


def _gpus(stage: Stage, config: CurateConfig) -> float:
    return config.resources.gpus.get(stage.name, stage.resources.gpus)


def _kind(gpus: float, concurrency: int) -> Kind:
    return "gpu" if gpus else "server" if concurrency else "cpu"


def _nodes(
    order: Iterable[Stage],
    config: CurateConfig,
    models: Mapping[str, Weights],
    stored: Mapping[str, Stored],
) -> tuple[Node, ...]:
    made = {name: column.fingerprint for name, column in stored.items()}
    nodes = []
    for stage in order:
        weights = {name: models[name] for name in stage.models}
        upstream = {c: made[c] for c in (*stage.reads, *stage.reads_if_present) if c in made}
        fingerprint = _fingerprint(stage, weights, upstream)
        made.update(dict.fromkeys((stage.column, *stage.working), fingerprint))
        gpus = _gpus(stage, config)
        engine = config.stages[stage.name].engine
        nodes.append(Node(stage.name, engine, stage.params, weights, fingerprint, gpus, stage.concurrency))
    return tuple(nodes)


def _fingerprint(stage: Stage, weights: Mapping[str, Weights], upstream: Mapping[str, str]) -> str:
    """Hash of everything a stage's results depend on except the song itself."""
    facts: dict[str, Any] = {
        "name": stage.name,
        "engine": recorded_name(type(stage)),
        "revision": stage.revision,
        "params": {k: v for k, v in stage.params.model_dump(mode="json").items() if not _is_file(v, stage.files)},
        "weights": {name: entry.digest for name, entry in weights.items()},
        "files": [file_digest(path) for path in stage.files],
        "reads": dict(sorted(upstream.items())),
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _is_file(value: Any, files: Iterable[Path]) -> bool:
    """Whether a parameter is one of the stage's files or their folder: those are hashed by content, not by path."""
    return isinstance(value, str) and any(Path(value) in (file, *file.parents) for file in files)
