"""Shared parts of web pages about a dataset, for the report file as well as the local server."""
