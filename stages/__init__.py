"""Stages: one file measures one thing about a song and owns the one column that says it."""
