"""Where the files of a dataset are kept: a folder, or a bucket of an object store."""
