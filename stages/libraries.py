"""Libraries that engines need beyond a plain installation: whether they are installed, and how to install them."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Library:
    """A library beyond the base dependencies.

    Attributes:
        name: its common name, for messages.
        module: the top-level module that is imported.
        package: its name on the package index.
        extra: songmill's extra that installs it; None if its own requirements conflict with the rest.
    """

    name: str
    module: str
    package: str
    extra: str | None

    @property
    def installed(self) -> bool:
        """Whether its module can be found, without importing it."""
        return find_spec(self.module) is not None

    def require(self) -> None:
        """Check that it is installed.

        Raises:
            RuntimeError: it is not; the message says how to install it.
        """
        if not self.installed:
            raise RuntimeError(f"{self.name} is not installed: {how_to_install([self])}")


def how_to_install(libraries: Iterable[Library]) -> str:
    """The commands that install them, with all extras in one."""
    libraries = [*libraries]
    commands = [f"pip install --no-deps {library.package}" for library in libraries if not library.extra]
    if extras := ",".join(sorted({library.extra for library in libraries if library.extra})):
        commands.insert(0, f"pip install 'songmill[{extras}]' (in a checkout: pip install -e '.[{extras}]')")
    return " and ".join(commands)
