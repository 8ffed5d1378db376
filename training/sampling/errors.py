"""What a user of the sampler can mend."""


class SamplingError(ValueError):
    """Input that cannot be sampled from; the message says what is wrong and how to mend it."""
