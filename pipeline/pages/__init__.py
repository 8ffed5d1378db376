"""What pages show of a dataset: rows that can be seen and heard, in a file or from a local server."""
