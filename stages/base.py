"""What a stage is: a small object that reads some columns of a batch and returns the one it owns.

A stage measures; it never judges (gates do) and never catches its own errors (the operator turns an exception
into the row's verdict). Subclass `Stage`, fill in the class attributes, write `process`. See CONTRIBUTING.md.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from schemas.files import file_digest
from stages.libraries import Library


class Params(BaseModel):
    """Parameters of a stage. They are part of its fingerprint: another value, another column.

    Parameters that do not affect results are declared with `Field(..., exclude=True)`, which keeps them out of it.
    A stage with parameters of its own subclasses this as `<Stage>Params` and lists them under `Attributes:`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Resources:
    """What one replica of a stage occupies."""

    cpus: float = 1.0
    gpus: float = 0.0
    batch_rows: int = 1


@dataclass(frozen=True)
class Weights:
    """A verified entry of the model store: the folder that holds its files and the digest of all of them."""

    name: str
    path: Path
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.digest[:8]}"


class TrackError(Exception):
    """A track that a stage cannot measure. The class name becomes the verdict's reason."""


class Track(Mapping[str, Any]):
    """One row of a batch. Values become Python objects on access; large binaries stay zero-copy buffers."""

    def __init__(self, batch: pa.Table, index: int) -> None:
        self._batch = batch
        self._index = index

    def __getitem__(self, column: str) -> Any:
        return _only(self._batch.column(column).slice(self._index, 1).chunk(0))

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch.column_names)

    def __len__(self) -> int:
        return self._batch.num_columns


class Stage(ABC):
    """One measurement: reads columns, owns one.

    Class attributes:
        name: its name in the configuration, unique in a DAG.
        column: the column it owns; by default its name.
        type: Arrow type of that column (see `schemas.columns`).
        reads: columns it needs, each with the type (or the subset of struct fields) it relies on.
        reads_if_present: columns it uses when some stage of the DAG writes them.
        working: columns it makes for later stages only; they are dropped before the sink.
        resources: what one replica occupies.
        libraries: what it imports beyond a plain installation; a run is refused where one is missing.
        scan_only: its column stays in the scan table and does not go into shards.
        revision: raised whenever the same parameters start to give different results.
    """

    name: ClassVar[str]
    column: ClassVar[str]
    type: ClassVar[pa.DataType]
    reads: ClassVar[Mapping[str, pa.DataType]] = {}
    reads_if_present: ClassVar[Mapping[str, pa.DataType]] = {}
    working: ClassVar[Mapping[str, pa.DataType]] = {}
    resources: ClassVar[Resources] = Resources()
    libraries: ClassVar[tuple[Library, ...]] = ()
    scan_only: ClassVar[bool] = False
    revision: ClassVar[int] = 1
    Params: ClassVar[type[Params]] = Params

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__ and "column" not in cls.__dict__:
            cls.column = cls.name

    def __init__(self, params: Params | None = None) -> None:
        self.params: Any = params if params is not None else self.Params()
        self.weights: Mapping[str, Weights] = {}
        self.wanted: frozenset[str] = frozenset(self.working)  # the operator narrows it to what later stages read
        self.device = "cpu"  # where its networks run; the operator says "cuda" where the stage was given a GPU

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the model store's entries it opens in `setup`."""
        return ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's own files (a lyric library, a vocabulary) whose content is part of the fingerprint."""
        return ()

    @property
    def concurrency(self) -> int:
        """For a stage that waits for a server, how many requests it may have open at once; 0 for any other stage.

        Such a stage gets an operator of its own with that many replicas, and occupies no core.
        """
        return 0

    @property
    def files_digest(self) -> str:
        """SHA-256 of the contents of `files`."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(bytes.fromhex(file_digest(path)))
        return digest.hexdigest()

    @property
    def model(self) -> str:
        """What made the figures, with its revision; written into every row."""
        if self.weights:
            return "+".join(str(weights) for weights in self.weights.values())
        return f"songmill.{self.name}@r{self.revision}"

    def setup(self, weights: Mapping[str, Weights]) -> None:
        """Load models; called once in the process that will run the stage. Extend it with `super().setup(weights)`.

        Raises:
            RuntimeError: one of the libraries is not installed here.
        """
        for library in self.libraries:
            library.require()
        self.weights = weights

    def run(self, batch: pa.Table) -> dict[str, Sequence[Any]]:
        """Measure every row of a batch: the owned column and the wanted working columns, as lists of Python values.

        The default calls `process` row by row. Stages that gain from batching override it; an exception then makes
        the operator repeat the batch row by row, so that only the guilty row fails.
        """
        rows = [self.process(Track(batch, i)) for i in range(batch.num_rows)]
        return {name: [row.get(name) for row in rows] for name in (self.column, *sorted(self.wanted))}

    @abstractmethod
    def process(self, track: Track) -> dict[str, Any]:
        """Measure one track: `{column: value}` plus any wanted working columns. `self.own` adds the model's name."""

    def own(self, **fields: Any) -> dict[str, Any]:
        """The owned struct with `model` filled in, as the dictionary that `process` returns."""
        return {self.column: {**fields, "model": self.model}}


def _only(values: pa.Array) -> Any:
    """The only value of an array. An Arrow scalar would be a copy, and songs are large."""
    if values.null_count:
        return None
    if pa.types.is_struct(values.type):
        return {field.name: _only(values.field(i)) for i, field in enumerate(values.type)}
    if pa.types.is_large_binary(values.type):
        _, offsets, data = values.buffers()
        start, stop = np.frombuffer(offsets, np.int64)[values.offset : values.offset + 2]
        return pa.py_buffer(b"") if data is None else data.slice(int(start), int(stop - start))
    return values[0].as_py()
