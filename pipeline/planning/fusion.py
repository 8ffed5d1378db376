"""The order of stages, chosen so that they make few operators.

Between operators, PCM and stems go through Ray's object store, 35 MB a column for a song of 200 s. So stages that run
on the same kind of resource are brought together as far as what they read allows: CPU stages that need only decoded
audio run with decode, all GPU stages in one process that holds their models, then stages that wait for a server, then
the CPU stages that read what those have written. A CPU stage that reads a working column of GPU stages (stems) runs
beside them.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Literal, Protocol, TypeVar

from stages.base import Stage

Kind = Literal["cpu", "gpu", "server"]

_KINDS: tuple[Kind, ...] = ("cpu", "gpu", "server")


class _Planned(Protocol):
    """A node of the DAG, as far as fusion looks at it."""

    @property
    def kind(self) -> Kind: ...

    @property
    def gpus(self) -> float: ...

    @property
    def stage_type(self) -> type[Stage]: ...


_N = TypeVar("_N", bound=_Planned)


def fusion_order(stages: Mapping[str, Stage], kind: Callable[[Stage], Kind]) -> tuple[list[Stage], list[str]]:
    """A topological order of the stages; where it leaves a choice, kind by kind and then as configured.

    Args:
        stages: by name, as configured.
        kind: what a stage runs on.

    Returns:
        The order, and what is wrong if there is none.
    """
    made_by = {column: name for name, stage in stages.items() for column in (stage.column, *stage.working)}
    needs = {name: {made_by[c] for c in _read(stage) if c in made_by} - {name} for name, stage in stages.items()}
    order: dict[str, Stage] = {}
    fruitless = 0
    for current in cycle(_KINDS):
        before = len(order)
        while stage := _next(stages, kind, needs, order, current, [*order.values()][before:]):
            order[stage.name] = stage
        fruitless = 0 if len(order) > before else fruitless + 1
        if len(order) == len(stages):
            return list(order.values()), []
        if fruitless == len(_KINDS):
            break
    return [], [f"dependency cycle between stages: {', '.join(n for n in stages if n not in order)}"]


def _next(
    stages: Mapping[str, Stage],
    kind: Callable[[Stage], Kind],
    needs: Mapping[str, set[str]],
    done: Mapping[str, Stage],
    current: Kind,
    group: Sequence[Stage],
) -> Stage | None:
    """The first stage that is ready and may join the group."""
    for name, stage in stages.items():
        beside = kind(stage) == "cpu" and current == "gpu" and _joins(stage, group)
        if name not in done and needs[name] <= done.keys() and (kind(stage) == current or beside):
            return stage
    return None


def fuse(nodes: Sequence[_N]) -> tuple[tuple[_N, ...], ...]:
    """Neighbours that make one operator."""
    groups: list[list[_N]] = []
    for node in nodes:
        last = groups[-1] if groups else []
        kind = last[0].kind if last else None
        beside = node.kind == "cpu" and kind == "gpu" and _joins(node.stage_type, [n.stage_type for n in last])
        if node.kind != kind and not beside:
            groups.append([])
        groups[-1].append(node)
    return tuple(tuple(group) for group in groups)


def gpu_share(nodes: Sequence[_Planned]) -> float:
    """GPUs that a worker of an operator claims: its stages' shares together, but no more than one or the largest."""
    shares = [node.gpus for node in nodes]
    return round(max(min(1.0, sum(shares)), 0.0, *shares), 6)


def _joins(stage: Stage | type[Stage], group: Sequence[Stage | type[Stage]]) -> bool:
    """Whether a stage reads working columns of a group's stages, which would have to cross the object store."""
    return any(column in other.working for other in group for column in _read(stage))


def _read(stage: Stage | type[Stage]) -> tuple[str, ...]:
    return (*stage.reads, *stage.reads_if_present)
