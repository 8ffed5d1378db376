"""How stages are ordered and brought together into operators."""

import itertools
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.config import build_config
from pipeline.planning.dag import Dag, build_dag, wanted_models
from pipeline.planning.fusion import fuse, fusion_order
from stages.base import Stage, Weights
from tests.support.command import asked

KINDS = ("cpu", "gpu", "server")


def planned(add: list[str], profile: str) -> Dag:
    """A profile's DAG, whether or not its models are there."""
    config = build_config(input="songs", output=Path("dataset"), add=add, profile=profile)
    return build_dag(config, {name: Weights(name, Path(), "") for name in wanted_models(config)}, {})


def operators(add: list[str], profile: str) -> list[list[str]]:
    return [[node.name for node in operator] for operator in planned(add, profile).operators]


def test_the_full_profile_has_four_operators():
    assert operators([], "full") == [
        ["decode", "events", "key", "tags"],
        ["aesthetics", "vocals", "transcript", "rhythm", "sections", "speaker"],  # the speaker stage reads stems
        ["caption"],
        ["phonemes", "lyrics", "lyric_tokens"],
    ]


def test_a_feature_made_of_captions_comes_behind_them():
    *_, last = operators(["ssl", "text_embedding"], "full")
    assert last == ["text_embedding"]


def test_the_small_profile_keeps_its_order_in_one_operator():
    (only,) = operators([], "small")
    assert only[:3] == ["decode", "events", "vocals"]


def test_between_operators_goes_pcm_and_no_stem():
    dag = planned([], "full")
    assert dag.store_bytes(200) == [35_280_000, 35_280_000, 0]
    assert not planned([], "small").store_bytes(200)


@pytest.mark.models
def test_plan_says_how_many_operators_there_are_and_what_goes_between_them():
    said = asked("plan", "--profile", "small", "--set", "resources.gpus={rhythm: 0.5}")
    assert "3 operators; a song of 200 s puts " in said


@st.composite
def dags(draw: st.DrawFn) -> tuple[dict[str, Stage], dict[str, str]]:
    """Stages that read columns of some before them, configured in any order."""
    count = draw(st.integers(1, 8))
    stages: dict[str, Stage] = {}
    for i in range(count):
        read = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        facts = {
            "name": f"s{i}",
            "type": pa.int64(),
            "reads": {f"s{j}" if draw(st.booleans()) else f"w{j}": pa.int64() for j in read},
            "working": {f"w{i}": pa.int64()},
            "column": f"s{i}",
            "process": lambda self, track: {},
        }
        stages[f"s{i}"] = type(f"S{i}", (Stage,), facts)()
    kinds = {name: draw(st.sampled_from(KINDS)) for name in stages}
    return {name: stages[name] for name in draw(st.permutations(list(stages)))}, kinds


class Planned:
    def __init__(self, stage: Stage, kind: str) -> None:
        self.stage_type, self.kind = type(stage), kind


@given(dags())
def test_every_stage_comes_once_behind_those_it_reads_and_operators_are_of_one_kind(drawn):
    stages, kinds = drawn
    order, problems = fusion_order(stages, lambda stage: kinds[stage.name])
    assert not problems
    assert sorted(stage.name for stage in order) == sorted(stages)
    made: set[str] = set()
    for stage in order:
        assert set(stage.reads) <= made
        made |= {stage.column, *stage.working}
    groups = fuse([Planned(stage, kinds[stage.name]) for stage in order])
    assert [node.stage_type.name for group in groups for node in group] == [stage.name for stage in order]
    for before, after in itertools.pairwise(groups):
        assert before[0].kind != after[0].kind
    for group in groups:
        assert {node.kind for node in group} <= {group[0].kind} | ({"cpu"} if group[0].kind == "gpu" else set())


@pytest.mark.parametrize("kind", KINDS)
def test_stages_that_wait_for_each_other_are_named(kind):
    facts = {"type": pa.int64(), "process": lambda self, track: {}}
    first = type("A", (Stage,), {**facts, "name": "a", "column": "a", "reads": {"b": pa.int64()}})()
    second = type("B", (Stage,), {**facts, "name": "b", "column": "b", "reads": {"a": pa.int64()}})()
    _, problems = fusion_order({"a": first, "b": second}, lambda stage: kind)
    assert problems == ["dependency cycle between stages: a, b"]
