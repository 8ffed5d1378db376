"""Model, objective, data and sampler. Reads shards through `schemas` alone."""
