"""`songmill ui`: a page in the browser for every task of the sampler."""
