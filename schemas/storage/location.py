"""Open the place that a user names: a folder, or a bucket."""

import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator

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
    where = _known(os.fspath(place))
    if scheme(where):
        from schemas.storage.bucket import BucketStore  # obstore is not needed for folders

        return BucketStore(where, options or StorageOptions())
    return LocalStore(Path(where))


def absolute(place: str) -> str:
    """The place as any process may name it, wherever it runs: a path without links, or the URL as it is."""
    return place if "://" in place else str(Path(place).resolve())


def _known(place: str) -> str:
    is_url = "://" in place or scheme(place.replace(":/", "://", 1))  # what `Path` makes of a URL has one slash
    if is_url and not ("://" in place and scheme(place) and urlsplit(place).netloc):
        raise ValueError(f"{place}: a dataset is a folder, or a bucket by a URL with s3://, gs:// or az://")
    if is_url and ("@" in urlsplit(place).netloc or {"?", "#"} & {*place}):
        where = place.partition("://")[0]
        raise ValueError(
            f"{where}://...: credentials and queries have no place in a URL, which is saved in the dataset; songmill "
            "takes credentials from the environment (docs/buckets.md)"
        )
    return place


def _plain(place: Any) -> Any:
    """A path as text, written as `Path` writes it; a URL, or what is no place, as it is."""
    is_path = isinstance(place, Path) or (isinstance(place, str) and "://" not in place)
    return str(Path(place)) if is_path else place


# A dataset in settings. A path stays relative if it is given so.
Place = Annotated[str, BeforeValidator(_plain), AfterValidator(_known)]
