"""Properties with few values, by which rows can be filtered at a click."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNKNOWN = ""  # in addresses, the value of rows without one
_VOCALS = "case vocals.has_vocals when true then 'vocal' when false then 'instrumental' end"


@dataclass(frozen=True)
class Facet:
    """A property of rows with few values.

    Attributes:
        name: its name in addresses.
        title: its name on the page.
        value: SQL expression over `rows`, giving text or a list of text.
        many: whether a row has a list of values.
        unknown: label for rows without a value.
    """

    name: str
    title: str
    value: str
    many: bool = False
    unknown: str = "unknown"

    @property
    def chosen(self) -> str:
        """SQL: whether a row has one of the values in the list parameter with the facet's name."""
        values = f"${self.name}::varchar[]"
        none = f"(list_contains({values}, '{UNKNOWN}') and {self._is_unknown})"
        has = "list_has_any" if self.many else "list_contains"
        return f"(coalesce({has}({values}, {self.value}), false) or {none})"

    @property
    def _is_unknown(self) -> str:
        return f"coalesce(len({self.value}), 0) = 0" if self.many else f"{self.value} is null"


def facets_of(fields: Mapping[str, str]) -> dict[str, Facet]:
    """The facets of a dataset with these fields, by name."""
    languages = [name for name in ("transcript.language", "language") if name in fields]  # detected, else declared
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
