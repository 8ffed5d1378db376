"""What a row that has killed workers brings along when it sets out again."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fate:
    """What the deaths of workers mean for a row.

    Attributes:
        attempts: how often it was begun, this time included, or if it is set aside, has been begun.
        stage: where it is set aside; empty while it may try again.
        message: why; empty while it may try again.
    """

    attempts: int
    stage: str = ""
    message: str = ""
