"""Problems of a dataset that its owner can fix."""


class DatasetProblem(Exception):  # noqa: N818 - it says what kind of problem, as `CheckpointProblem` does
    """A dataset that cannot be trained on; the message names the file or column and the fix."""


class CorruptShard(DatasetProblem):
    """A file of the dataset that cannot be read.

    Attributes:
        path: the file.
        error: what went wrong.
    """

    def __init__(self, path: str, error: str) -> None:
        super().__init__(path, error)
        self.path = path
        self.error = error

    def __str__(self) -> str:
        return f"{self.path} cannot be read: {self.error}; restore it, or train on without it (on_corrupt: skip)"
