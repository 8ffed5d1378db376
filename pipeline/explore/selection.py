"""What of a dataset is looked at. All of it stands in the address, so that every address is a permanent link."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import quote, urlencode

from starlette.datastructures import QueryParams

from pipeline.errors import UsageProblem
from pipeline.explore.facets import Facet

PAGE_ROWS = 50
_LAST_PAGE = 10**9


@dataclass(frozen=True)
class Selection:
    """Which rows, in which order, from where on.

    Attributes:
        text: words that title, artist, album or uri have.
        where: SQL that a row has to fulfil.
        chosen: facet -> values, of which a row has to have one.
        sort: the field that orders the rows; None for the order in which they are stored.
        descending: largest first.
        page: counts from 1.
    """

    text: str = ""
    where: str = ""
    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sort: str | None = None
    descending: bool = False
    page: int = 1

    @classmethod
    def of(cls, query: QueryParams, facets: Mapping[str, Facet], fields: Mapping[str, str]) -> Self:
        """Read an address.

        Raises:
            UsageProblem: it asks for a field that the dataset does not have, or for no page.
        """
        sort, page = query.get("sort") or None, query.get("page", "1")
        if sort is not None and (sort not in fields or fields[sort] == "list"):
            raise UsageProblem(f"nothing to sort by is called {sort!r}")
        if not (page.isascii() and page.isdecimal() and 1 <= int(page) <= _LAST_PAGE):
            raise UsageProblem(f"{page!r} is no page")
        chosen = {name: tuple(dict.fromkeys(query.getlist(name))) for name in facets if name in query}
        return cls(
            text=query.get("q", "").strip(),
            where=query.get("where", "").strip(),
            chosen=chosen,
            sort=sort,
            descending=query.get("order") == "desc",
            page=int(page),
        )

    @property
    def query(self) -> str:
        """The part of the address after the question mark, which starts it; empty for everything from the start."""
        return "?" + urlencode(self.pairs) if self.pairs else ""

    @property
    def pairs(self) -> list[tuple[str, Any]]:
        """The same as the fields of a form."""
        texts: list[tuple[str, Any]] = [("q", self.text), ("where", self.where)]
        parts = [(name, value) for name, value in texts if value]
        parts += [(name, value) for name, values in self.chosen.items() for value in values]
        if self.sort:
            parts += [("sort", self.sort), *([("order", "desc")] if self.descending else [])]
        if self.page > 1:
            parts.append(("page", self.page))
        return parts

    @property
    def is_filtered(self) -> bool:
        """Whether anything but the order was asked for."""
        return bool(self.text or self.where or self.chosen)

    def but(self, **changes: Any) -> Self:
        """Another selection, from its first page on unless a page is given."""
        return replace(self, **{"page": 1, **changes})

    def with_facet(self, name: str, values: Sequence[str]) -> Self:
        """Another choice of one facet's values."""
        others = {facet: chosen for facet, chosen in self.chosen.items() if facet != name}
        return self.but(chosen={**others, name: tuple(values)} if values else others)

    def toggled(self, name: str, value: str) -> Self:
        """With a value of a facet chosen, or no longer."""
        now = self.chosen.get(name, ())
        return self.with_facet(name, [v for v in now if v != value] if value in now else [*now, value])

    def sorted_by(self, field: str) -> Self:
        """Ordered by a field; the other way round where it is already."""
        return self.but(sort=field, descending=self.sort == field and not self.descending)

    def row_address(self, row_id: str) -> str:
        """The page of a row, from which the list is found again."""
        return f"/row/{quote(row_id, safe='')}{self.query}"
