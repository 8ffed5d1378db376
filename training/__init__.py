"""Model, objective, data and sampler. Reads shards through `schemas` alone."""

import os

# MKL reads this at its first call in a process. Without it, the last bit of a product may depend on where in memory its
# operands lie; with it, on processor and number of threads alone (oneMKL, "Conditional Numerical Reproducibility").
os.environ.setdefault("MKL_CBWR", "AUTO")
