"""For maintainers: runs an entry's converter and prints the pins of its output, for `registry.yaml`.

    python -m pipeline.models.pin e5-small

Run it twice: a converter whose pins differ between two processes must not be released.
"""

import sys
import tempfile
from pathlib import Path

from pipeline.models.installation import Installation
from pipeline.models.progress import silent
from pipeline.models.registry import File
from pipeline.models.store import ModelStore
from schemas.files import file_digest


def pins(store: ModelStore, name: str) -> list[File]:
    """The files that an entry's converter writes now, hashed; the registry's pins are ignored."""
    with tempfile.TemporaryDirectory() as folder:
        entry = store.entry(name)
        target = Installation(
            entry=entry,
            registry=store.registry,
            staging=Path(folder),
            mirrors=[],
            pull=lambda other: store.pull(other).path,
            progress=silent,
        ).converted()
        written = sorted(path for path in target.rglob("*") if path.is_file())
        return [
            File(path=path.relative_to(target).as_posix(), size=path.stat().st_size, sha256=file_digest(path))
            for path in written
        ]


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(f"    files:  # {wanted}")
        for file in pins(ModelStore(), wanted):
            print(f"      - {{path: {file.path}, size: {file.size}, sha256: {file.sha256}}}")
