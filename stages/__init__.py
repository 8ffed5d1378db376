"""Stages: each file measures one thing about a song and owns one column."""
