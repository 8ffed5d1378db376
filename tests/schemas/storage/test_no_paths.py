"""A dataset may be in a bucket: outside the stores, nobody takes it for a folder."""

import re

import pytest

from tests.support.places import ROOT

MODULES = sorted(
    path
    for package in ("schemas", "stages", "training", "pipeline")
    for path in (ROOT / package).rglob("*.py")
    if path.parent != ROOT / "schemas" / "storage"
)
# A local store's folder, a place taken for a path, a name joined to one.
AS_FOLDER = re.compile(
    r"\b(?:layout|source|target|dataset)(?:\.store)?\.root\b"
    r"|(?<!PurePosix)Path\((?:\w+\.)*url\)(?!\.parent)"
    r"|layout\.\w+ / "
)


@pytest.mark.parametrize(
    "line", ["layout.root / name", "Path(layout.url)", "layout.store.root", "layout.shards / name"]
)
def test_it_would_be_seen(line):
    assert AS_FOLDER.search(line)


def test_no_module_joins_paths_of_a_dataset():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if AS_FOLDER.search(line)
    ]
    assert not found
