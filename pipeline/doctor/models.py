"""The models that a run's stages need: whether they are in the store, by size and time, without hashing anything."""

from collections.abc import Iterable, Iterator

from pipeline.doctor.findings import Finding, ok, problem, warning
from pipeline.models.errors import UnknownModel
from pipeline.models.registry import Entry
from pipeline.models.store import ModelStore


def models(names: Iterable[str], store: ModelStore) -> Iterator[Finding]:
    """One finding per model."""
    for known in names:
        try:
            entry = store.entry(known)
        except UnknownModel as error:
            yield problem(f"model {known}", str(error), "choose one of `songmill models list`")
            continue
        name, size = f"model {entry.name}", f"{entry.size / 1e6:.0f} MB" if entry.size else "size not known"
        check = store.glance(entry.name)
        if check.state == "missing":
            yield problem(name, f"not in {store.root} ({size})", _pull(entry))
        elif check.state == "damaged":
            yield problem(name, check.problem, _pull(entry))
        elif check.state == "unverified":
            yield warning(name, check.problem, f"songmill models verify {entry.name}")
        else:
            yield ok(name, size)


def missing_bytes(names: Iterable[str], store: ModelStore) -> int:
    """Size of the models that have to be pulled, as far as it is known."""
    known = {entry.name: entry.size for entry in store.entries()}
    return sum(known[name] for name in names if name in known and store.glance(name).state in ("missing", "damaged"))


def _pull(entry: Entry) -> str:
    """The command that pulls an entry; without a public source the user has to supply the files."""
    return f"songmill models pull {entry.name}" + ("" if entry.sources else " --from FOLDER")
