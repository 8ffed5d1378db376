"""Open the place that a user names: a folder, or a bucket."""

import os
from pathlib import Path

from schemas.storage.local import LocalStore
from schemas.storage.options import StorageOptions, scheme
from schemas.storage.store import Store


def open_store(place: str | Path, options: StorageOptions | None = None) -> Store:
    """The store of a dataset, which need not exist yet.

    Args:
        place: a path, or a URL that begins with `s3://`, `gs://` or `az://`.
        options: how to reach a bucket.

    Raises:
        ValueError: it is another URL.
    """
    where = os.fspath(place)
    if scheme(where):
        from schemas.storage.bucket import BucketStore  # obstore is not needed for folders

        return BucketStore(where, options or StorageOptions())
    if "://" in where:
        raise ValueError(f"{where}: a dataset is a folder, or a bucket by a URL with s3://, gs:// or az://")
    return LocalStore(Path(where))
