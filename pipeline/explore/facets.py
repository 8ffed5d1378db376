"""What rows can be told apart by at a click."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNKNOWN = ""  # the value of rows that have none, in addresses
_VOCALS = "case vocals.has_vocals when true then 'vocal' when false then 'instrumental' end"


@dataclass(frozen=True)
class Facet:
    """A property of rows with few values.

    Attributes:
        name: in addresses.
        title: on the page.
        value: SQL over `rows`, text or a list of text.
        many: whether a row has a list of values.
        unknown: what rows without a value are called.
    """

    name: str
    title: str
    value: str
    many: bool = False
    unknown: str = "unknown"

    @property
    def chosen(self) -> str:
        """SQL: whether a row has one of the values of the list parameter named like the facet."""
        values = f"${self.name}::varchar[]"
        none = f"(list_contains({values}, '{UNKNOWN}') and {self._is_unknown})"
        has = "list_has_any" if self.many else "list_contains"
        return f"(coalesce({has}({values}, {self.value}), false) or {none})"

    @property
    def _is_unknown(self) -> str:
        return f"coalesce(len({self.value}), 0) = 0" if self.many else f"{self.value} is null"


def facets_of(fields: Mapping[str, str]) -> dict[str, Facet]:
    """The facets that a dataset with these fields has, by name."""
    languages = [name for name in ("transcript.language", "language") if name in fields]  # as heard, else as declared
    made: list[tuple[Facet, Sequence[str]]] = [
        (Facet("status", "Status", "verdict.status"), ["verdict.status"]),
        (
            Facet("reason", "Turned away by", "verdict.stage || ': ' || verdict.reason", unknown="nothing"),
            ["verdict.stage", "verdict.reason"],
        ),
        (Facet("mark", "Mark", "mark", unknown="unmarked"), []),
        (Facet("language", "Language", f"coalesce({', '.join(languages)})"), languages or ["language"]),
        (Facet("vocals", "Vocals", _VOCALS), ["vocals.has_vocals"]),
        (Facet("tag", "Tag", "tags.names", many=True, unknown="no tag"), ["tags.names"]),
        (Facet("key", "Key", "key.tonic || ' ' || key.mode"), ["key.tonic", "key.mode"]),
        (Facet("license", "Licence", "license"), ["license"]),
        (Facet("source", "Source", "source"), ["source"]),
        (Facet("flag", "Flag", "flags", many=True, unknown="no flag"), ["flags"]),
    ]
    return {facet.name: facet for facet, needs in made if all(name in fields for name in needs)}
