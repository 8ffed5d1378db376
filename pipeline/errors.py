"""What a user can mend. Commands print the message and exit; anything else is our defect and keeps its traceback."""


class DataProblem(Exception):  # noqa: N818 - it says what kind of problem, the subclasses say which error
    """The input, the dataset, the store or the cluster is not as it has to be."""


class UsageProblem(Exception):  # noqa: N818
    """What was asked for cannot be done as asked."""
