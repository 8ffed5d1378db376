"""What has to be installed: Python, songmill's dependencies, and the extras that a run's stages need."""

import platform
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement

from pipeline.doctor.findings import Finding, ok, problem, warning
from stages.libraries import Library, how_to_install

_NAME = "songmill"
_FOR_DEVELOPERS = "dev"


def installation(wanted: Mapping[Library, Sequence[str]]) -> list[Finding]:
    """Check Python, dependencies and extras.

    Args:
        wanted: library -> the stages that need it.
    """
    return [_python(), _dependencies(), *_extras(wanted), *_beyond_extras(wanted), _compiled_code()]


def _python() -> Finding:
    asked_for = metadata(_NAME)["Requires-Python"]
    python = f"{platform.python_version()} in {sys.prefix}"
    found = f"{python}, {platform.system()} {platform.machine()}, songmill {version(_NAME)}"
    if platform.python_version() not in Requirement(f"python{asked_for}").specifier:
        return problem("Python", found, f"create the virtual environment with Python {asked_for}")
    if platform.system() != "Linux":
        return warning("Python", found, "songmill is made for Linux and untested elsewhere")
    return ok("Python", found)


def _dependencies() -> Finding:
    """The dependencies of a plain installation."""
    needed = [requirement for requirement in _requirements() if _is_wanted(requirement)]
    unfit = [text for requirement in needed if (text := _unfit(requirement))]
    if unfit:
        return problem("dependencies", "; ".join(unfit), "install them: make, or pip install --upgrade songmill")
    return ok("dependencies", f"all {len(needed)} packages are installed in supported versions")


def _extras(wanted: Mapping[Library, Sequence[str]]) -> Iterator[Finding]:
    by_extra: defaultdict[str, list[Library]] = defaultdict(list)
    for library in wanted:
        by_extra[library.extra or ""].append(library)
    for extra in metadata(_NAME).get_all("Provides-Extra") or []:
        if extra != _FOR_DEVELOPERS:
            yield _extra(extra, by_extra[extra], [stage for lib in by_extra[extra] for stage in wanted[lib]])


def _extra(extra: str, libraries: Sequence[Library], stages: Sequence[str]) -> Finding:
    packages = [requirement for requirement in _requirements() if _is_wanted(requirement, extra)]
    found = ", ".join(_unfit(package) or f"{package.name} {version(package.name)}" for package in packages)
    name = f"extra {extra}"
    if not stages:
        return ok(name, f"{found} (not needed by this run)")
    used = f"{found} (for {', '.join(stages)})"
    absent = [library for library in libraries if not library.installed]
    if absent or any(map(_unfit, packages)):
        return problem(name, used, how_to_install(libraries))
    return ok(name, used)


def _beyond_extras(wanted: Mapping[Library, Sequence[str]]) -> Iterator[Finding]:
    for library, stages in wanted.items():
        if not library.extra:
            used = f"for {', '.join(stages)}"
            if library.installed:
                yield ok(library.package, f"installed ({used})")
            else:
                yield problem(library.package, f"not installed ({used})", how_to_install([library]))


def _compiled_code() -> Finding:
    """Numba caches compiled code on disk, where two processes that write at once can corrupt it."""
    numba = f"numba {version('numba')} is installed" if find_spec("numba") else "numba is not installed"
    return ok("JIT cache", f"{numba}; songmill's own stages compile nothing at run time")


def _requirements() -> list[Requirement]:
    return [Requirement(line) for line in requires(_NAME) or ()]


def _is_wanted(requirement: Requirement, extra: str = "") -> bool:
    """Whether an extra, or by default a plain installation, needs it."""
    marker = requirement.marker
    if not extra:
        return not marker or marker.evaluate({"extra": ""})
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _unfit(requirement: Requirement) -> str | None:
    """What is wrong with an installed package, if anything is."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} {found} is not {requirement.specifier}"
    return None
