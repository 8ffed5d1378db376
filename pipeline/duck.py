"""DuckDB as songmill's commands open it."""

import duckdb


def new_connection() -> duckdb.DuckDBPyConnection:
    """DuckDB in memory, without the progress bar that it would write among the data on stdout."""
    connection = duckdb.connect()
    connection.execute("set enable_progress_bar = false")
    return connection
