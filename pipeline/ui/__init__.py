"""`songmill ui`: a web page for all tasks of the sampler."""
