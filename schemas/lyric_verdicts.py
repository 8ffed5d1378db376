"""Verdicts on lines of lyrics, as in the `lyrics` column."""

CANONICAL = "canonical"  # the library's text, sung here
HEARD = "heard"  # something like a line of the library was sung, but the transcript's text is kept
MISSING = "missing"  # in the library, not sung
EXTRA = "extra"  # sung, not in the library
SUNG = frozenset({CANONICAL, HEARD, EXTRA})
