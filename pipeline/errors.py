"""What a user can mend. Commands print the message and exit; anything else is our defect and keeps its traceback."""

import errno
import os

# What a user can mend where a file is written. Any other OSError is our defect and keeps its traceback.
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable, or name another place"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG), "name another place"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENODEV), "see to the disk"),
}


class DataProblem(Exception):  # noqa: N818 - it says what kind of problem, the subclasses say which error
    """The input, the dataset, the store or the cluster is not as it has to be."""


class UsageProblem(Exception):  # noqa: N818
    """What was asked for cannot be done as asked."""


def is_mendable(error: OSError) -> bool:
    """Whether a user can do something about a file that cannot be written."""
    return error.errno in _ADVICE


def unwritable(error: OSError) -> str:
    """What to say of a file or folder that cannot be written, and what to do."""
    path, why = error.filename2 or error.filename, os.strerror(error.errno) if error.errno else str(error)
    advice = _ADVICE.get(error.errno or 0, "mend that")
    return f"{f'{path}: ' if path else ''}{why}; what is complete stands: {advice}, and the same command goes on"
