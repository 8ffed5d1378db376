"""DuckDB as songmill's commands open it."""

import tempfile
from pathlib import Path
from secrets import token_hex

import duckdb

_LIMITS = {"memory_limit": "50%", "max_temp_directory_size": "20GB"}


def new_connection() -> duckdb.DuckDBPyConnection:
    """DuckDB in memory, without the progress bar that it would write among the data on stdout.

    It takes at most half of the machine's memory; what it needs beyond that lies in the folder for temporary files, not
    in the one that the user happens to be in. The user's own SQL runs with these limits and no others: it comes from
    their own shell, unlike the conditions of `songmill explore`.
    """
    spill = Path(tempfile.gettempdir()) / f"songmill-{token_hex(8)}"  # made when it is needed, and removed
    connection = duckdb.connect(config={**_LIMITS, "temp_directory": str(spill)})
    connection.execute("set enable_progress_bar = false")
    return connection
