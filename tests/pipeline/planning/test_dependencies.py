"""Libraries beyond the base dependencies: every engine names its own, and a run without them is refused at once."""

import ast
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.models.store import ModelStore
from pipeline.planning.config import build_config
from pipeline.planning.dependencies import missing_libraries, options_without
from pipeline.planning.plan import draft_dag
from stages.registry import ENGINES, stage_class
from tests.support.command import asked
from tests.support.places import ROOT

OPTIONAL = ("essentia", "beat_this", "demucs", "allin1_infer", "whisper", "openai", "audiobox_aesthetics")
OURS = ("stages", "schemas", "pipeline", "training")


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)  # find_spec, too, takes None for "not there"


@cache
def imported(module: str) -> frozenset[str]:
    """Top-level packages that a module of ours imports anywhere in its code, or a module of ours that it imports."""
    return frozenset(name.partition(".")[0] for name in reached(module) if name.partition(".")[0] not in OURS)


def reached(module: str) -> set[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            if (path := ROOT / f"{name.replace('.', '/')}.py").is_file():
                waiting += imports(path)
    return seen


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def brought(package: str, extra: str = "") -> frozenset[str]:
    """A package and all that its installation brings."""
    found: set[str] = set()
    waiting = [(package, extra)]
    while waiting:
        name, with_extra = waiting.pop()
        name = canonicalize_name(name)
        if (name, with_extra) in found:
            continue
        found.add((name, with_extra))
        try:
            wanted = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        for requirement in wanted:
            if not requirement.marker or requirement.marker.evaluate({"extra": with_extra}):
                waiting += [(requirement.name, more) for more in ("", *requirement.extras)]
    return frozenset(name for name, _ in found)


def strangers(modules: Iterable[str], packages: Iterable[str]) -> set[str]:
    """Modules that neither Python nor one of the packages brings."""
    there = {module: {canonicalize_name(p) for p in found} for module, found in packages_distributions().items()}
    packages = set(packages)
    return {m for m in modules if m not in sys.stdlib_module_names and not there.get(m, set()) & packages}


@pytest.mark.parametrize(("stage", "engine"), [(stage, engine) for stage, found in ENGINES.items() for engine in found])
def test_every_engine_names_the_libraries_that_a_plain_installation_lacks(stage: str, engine: str):
    kind = stage_class(stage, engine)
    module = ENGINES[stage][engine].partition(":")[0]
    packages = {*brought("songmill"), *(p for library in kind.libraries for p in brought(library.package))}
    unnamed = strangers(imported(module), packages) - {library.module for library in kind.libraries}
    assert not unnamed, f"{module} imports {unnamed}: name them in its `libraries`"
    for library in kind.libraries:
        assert library.module in imported(module), f"{module} does not import {library.module}"
        if library.extra:
            assert canonicalize_name(library.package) in brought("songmill", library.extra)


def test_the_check_would_see_an_engine_that_names_nothing():
    assert "essentia" in strangers(imported("stages.key"), brought("songmill"))
    assert "audiobox_aesthetics" in strangers(imported("stages.aesthetics"), brought("songmill"))
    named = {library.module for s, found in ENGINES.items() for e in found for library in stage_class(s, e).libraries}
    assert named == {*OPTIONAL}


@pytest.mark.models
def test_plan_lists_all_that_is_missing_and_one_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, *OPTIONAL)
    said = asked("plan", "--profile", "full", code=2)
    assert "curate would refuse this plan" in said
    for name in ("Demucs (stage vocals)", "Beat This (stage rhythm)", "Essentia (stage key)", "All-In-One", "Audiobox"):
        assert name in said
    assert "pip install 'songmill[beats,captions,essentia,sections,separation]'" in said
    assert "pip install -e '.[beats,captions,essentia,sections,separation]'" in said
    assert "pip install --no-deps audiobox-aesthetics" in said
    assert "openai-whisper" not in said  # not in this plan


@pytest.mark.models
def test_curate_and_a_pilot_are_refused_before_anything_is_read_or_written(monkeypatch, tmp_path: Path):
    without(monkeypatch, "essentia")
    songs, out = tmp_path / "no such folder", tmp_path / "out" / "dataset"
    for command in (("curate", songs, "--out", out), ("plan", songs, "--pilot", "2")):
        said = asked(*command, code=2)
        assert "not installed: Essentia (stage rhythm, key)" in said
        assert "pip install 'songmill[essentia]'" in said
        assert "or run without them: --stages decode,quality,fingerprint,events,vocals" in said
    assert not out.parent.exists()


def test_the_plan_as_json_says_how_to_install_what_is_missing(monkeypatch: pytest.MonkeyPatch, capfd):
    without(monkeypatch, "essentia")
    from typer.testing import CliRunner

    from pipeline.cli import app

    told = CliRunner().invoke(app, ["plan", "--json", "--stages", "decode,key"])
    assert told.exit_code == 2
    assert json.loads(told.stdout)["missing_libraries"]["essentia"].startswith("pip install 'songmill[essentia]'")


@settings(max_examples=15)
@given(hidden=st.sets(st.sampled_from(OPTIONAL)), profile=st.sampled_from(("small", "full")))
@pytest.mark.models
def test_what_is_offered_instead_needs_nothing_that_is_missing(hidden: set[str], profile: str):
    store = ModelStore()
    with pytest.MonkeyPatch.context() as monkeypatch:
        without(monkeypatch, *hidden)
        given_config = build_config(profile=profile, input="songs", output=Path("dataset"))
        options = shlex.split(options_without(given_config, store))
        pairs = list(zip(options[::2], options[1::2], strict=True))
        offered = build_config(
            profile=profile,
            input="songs",
            output=Path("dataset"),
            only=[name for option, value in pairs if option == "--stages" for name in value.split(",")],
            overrides=[value for option, value in pairs if option == "--set"],
        )
        assert not missing_libraries(offered)
        draft_dag(offered, store)  # every column that is read is written
        assert {"decode", "vocals", "transcript", "lyrics"} <= offered.stages.keys()
        if not missing_libraries(given_config):
            assert not options
