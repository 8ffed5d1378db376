"""DuckDB connections with the settings that all commands share."""

import tempfile
from pathlib import Path
from secrets import token_hex

import duckdb

_LIMITS = {"memory_limit": "50%", "max_temp_directory_size": "20GB"}


def new_connection() -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB connection without the progress bar, which would mix with data on stdout.

    It uses at most half of the machine's memory and spills to the temporary folder, not to the working directory. SQL
    from the command line runs without further restrictions since it comes from the user's own shell, unlike the
    conditions of `songmill explore`.
    """
    spill = Path(tempfile.gettempdir()) / f"songmill-{token_hex(8)}"  # DuckDB creates and removes it
    connection = duckdb.connect(config={**_LIMITS, "temp_directory": str(spill)})
    connection.execute("set enable_progress_bar = false")
    return connection
