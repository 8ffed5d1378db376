"""Errors that a user of the sampler can fix."""


class SamplingError(ValueError):
    """Input that cannot be sampled from; the message says what is wrong and how to fix it."""
