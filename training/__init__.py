"""Training and sampling: the ACE-Step transformer, the music autoencoder and the speaker encoder.

Imports `schemas` and `stages`, never `pipeline`, which starts the runs.
"""

import os

# MKL reads this at its first call in a process. Without it, the last bit of a product may depend on the addresses of
# its operands; with it, only on the processor and the number of threads (oneMKL, "Conditional Numerical
# Reproducibility").
os.environ.setdefault("MKL_CBWR", "AUTO")
