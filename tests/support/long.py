"""Tests that take long and guard what seldom breaks: run on request, before a release."""

import os

import pytest

LONG_TESTS = bool(os.environ.get("SONGMILL_LONG_TESTS"))
ON_REQUEST = "takes long: set SONGMILL_LONG_TESTS=1"
long = pytest.mark.skipif(not LONG_TESTS, reason=ON_REQUEST)
