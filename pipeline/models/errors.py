"""Errors of the model store. Every message says what to do."""
# ruff: noqa: N818 - errors are named after what happened

from collections.abc import Mapping

from pipeline.errors import DataProblem


class ModelStoreError(DataProblem):
    """Base of all errors of the model store."""


class UnknownModel(ModelStoreError):
    """No entry or group has this name."""


class ModelMissing(ModelStoreError):
    """An entry that has not been pulled yet."""

    def __init__(self, name: str) -> None:
        super().__init__(f"model {name!r} is not in the store; run: songmill models pull {name}")


class WrongBytes(ModelStoreError):
    """A file that differs from the one in the registry."""

    def __init__(self, file: str, expected: str, got: str, advice: str) -> None:
        super().__init__(f"{file} was refused: expected {expected}, got {got}; {advice}")


class SourceFailed(ModelStoreError):
    """One source that could not serve a file."""


class AllSourcesFailed(ModelStoreError):
    """No source could serve an entry's files."""

    def __init__(self, name: str, reasons: Mapping[str, str]) -> None:
        listed = "".join(f"\n  - {source}: {reason}" for source, reason in reasons.items())
        super().__init__(
            f"no source could serve model {name!r}:{listed or ' it has no public source'}\n"
            f"If you have the files, run: songmill models pull {name} --from FOLDER"
        )
