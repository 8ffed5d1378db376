"""Retry state of a row on which workers have died, sent along with the row when it is processed again."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fate:
    """Consequence of worker deaths for a row: another attempt, or failure.

    Attributes:
        attempts: number of attempts, including the current one if the row is tried again.
        stage: the stage in which the row is to fail; empty if it is tried again.
        message: the failure's message; empty if it is tried again.
    """

    attempts: int
    stage: str = ""
    message: str = ""
