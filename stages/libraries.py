"""Libraries that engines import and a plain installation does not bring: whether they are there, how to get them."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Library:
    """A library beyond the base dependencies.

    Attributes:
        name: as people know it.
        module: the top-level module that is imported.
        package: what the package index calls it.
        extra: songmill's extra that brings it; None where none can, for what it asks for does not go with the rest.
    """

    name: str
    module: str
    package: str
    extra: str | None

    @property
    def installed(self) -> bool:
        """Whether it can be found; it is not imported."""
        return find_spec(self.module) is not None

    def require(self) -> None:
        """Refuse to go on without it.

        Raises:
            RuntimeError: it is not installed; the message says how to install it.
        """
        if not self.installed:
            raise RuntimeError(f"{self.name} is not installed: {how_to_install([self])}")


def how_to_install(libraries: Iterable[Library]) -> str:
    """The commands that install them, all extras in one."""
    libraries = [*libraries]
    commands = [f"pip install --no-deps {library.package}" for library in libraries if not library.extra]
    if extras := ",".join(sorted({library.extra for library in libraries if library.extra})):
        commands.insert(0, f"pip install 'songmill[{extras}]' (in a checkout: pip install -e '.[{extras}]')")
    return " and ".join(commands)
