"""Which rows of a dataset are shown. The address contains all of it, so that every address is a permanent link."""

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
    """Which rows, in which order, on which page.

    Attributes:
        text: words to find in title, artist, album or uri.
        where: SQL condition that a row has to satisfy.
        chosen: facet -> values, of which a row has to have at least one.
        sort: the field to sort by; None for stored order.
        descending: largest first.
        page: number of the page, from 1.
    """

    text: str = ""
    where: str = ""
    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sort: str | None = None
    descending: bool = False
    page: int = 1

    @classmethod
    def of(cls, query: QueryParams, facets: Mapping[str, Facet], fields: Mapping[str, str]) -> Self:
        """Parse the query of an address.

        Raises:
            UsageProblem: it names a field that the dataset does not have, or an invalid page.
        """
        sort, page = query.get("sort") or None, query.get("page", "1")
        if sort is not None and (sort not in fields or fields[sort] == "list"):
            raise UsageProblem(f"rows cannot be sorted by {sort!r}")
        if not (page.isascii() and page.isdecimal() and 1 <= int(page) <= _LAST_PAGE):
            raise UsageProblem(f"{page!r} is not a page")
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
        """The query of the address, with its question mark; empty for the default view."""
        return "?" + urlencode(self.pairs) if self.pairs else ""

    @property
    def pairs(self) -> list[tuple[str, Any]]:
        """The same as form fields."""
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
        """Whether rows are filtered at all."""
        return bool(self.text or self.where or self.chosen)

    def but(self, **changes: Any) -> Self:
        """A changed selection, at its first page unless a page is given."""
        return replace(self, **{"page": 1, **changes})

    def with_facet(self, name: str, values: Sequence[str]) -> Self:
        """The selection with these values of one facet chosen."""
        others = {facet: chosen for facet, chosen in self.chosen.items() if facet != name}
        return self.but(chosen={**others, name: tuple(values)} if values else others)

    def toggled(self, name: str, value: str) -> Self:
        """The selection with a value of a facet added, or removed if it was chosen."""
        now = self.chosen.get(name, ())
        return self.with_facet(name, [v for v in now if v != value] if value in now else [*now, value])

    def sorted_by(self, field: str) -> Self:
        """The selection sorted by a field, in reverse if it is sorted by it already."""
        return self.but(sort=field, descending=self.sort == field and not self.descending)

    def row_address(self, row_id: str) -> str:
        """The address of a row's page, which leads back to this list."""
        return f"/row/{quote(row_id, safe='')}{self.query}"
