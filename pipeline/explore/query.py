"""Pages of rows and counts of facets. Queries have a time limit; a user's SQL must be a single expression.

A selection with a condition goes through `pipeline.explore.conditions`, which limits its memory.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.errors import UsageProblem
from pipeline.explore.facets import UNKNOWN, Facet, facets_of
from pipeline.explore.index import Index, is_unreadable
from pipeline.explore.live import Marks
from pipeline.explore.selection import PAGE_ROWS, Selection

LIMIT_S = 20.0
_CACHED = 64
_LONGEST_PROBLEM = 1000  # characters
_CACHED_FITS = 4  # of a million ids each, at most
_SEARCHED = ("title", "artist", "album", "uri")
_SHOWN = {
    "title": "title",
    "artist": "artist",
    "uri": "uri",
    "license": "license",
    "duration_s": "audio.duration_s",
    "bpm": "rhythm.bpm",
    "tonic": "key.tonic",
    "mode": "key.mode",
    "heard": "transcript.language",
    "language": "language",
    "has_vocals": "vocals.has_vocals",
    "tags": "tags.names",
    "flags": "flags",
    "status": "verdict.status",
    "stage": "verdict.stage",
    "reason": "verdict.reason",
}


class BadExpression(UsageProblem):
    """A condition that cannot be evaluated; the message says why."""


@dataclass(frozen=True)
class Counts:
    """Totals of a selection.

    Attributes:
        rows: number of rows.
        hours: hours of audio, where known.
        facets: facet -> value -> rows, most first; each as if no value of that facet itself were chosen.
    """

    rows: int = 0
    hours: float = 0.0
    facets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A page of a selection.

    Attributes:
        rows: see `Catalog.rows`.
        counts: totals of the whole selection.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


class Catalog:
    """Answers queries about one state of a dataset."""

    def __init__(self, index: Index, limit_s: float = LIMIT_S) -> None:
        self.index = index
        self.facets = facets_of(index.fields)
        self._limit_s = limit_s
        self._counts: OrderedDict[Any, Counts] = OrderedDict()
        self._fits: OrderedDict[Any, pa.Table] = OrderedDict()

    def page(self, selection: Selection, marks: Marks) -> Page:
        """A page of rows and its counts.

        Raises:
            BadExpression: the condition is invalid or takes too long.
        """
        counts = self.counts(selection, marks)
        return Page(self.rows(selection, marks), counts)

    def rows(self, selection: Selection, marks: Marks) -> list[dict[str, Any]]:
        """One page of rows: `row_id`, the columns of the list, `sorted` (the value they are ordered by), and `mark`.

        Raises:
            BadExpression: the condition is invalid or takes too long.
        """
        shown = {name: path for name, path in _SHOWN.items() if path in self.index.fields}
        shown |= {"sorted": selection.sort} if selection.sort else {}
        columns = ", ".join(["row_id", *(f"{_path(path)} as {name}" for name, path in shown.items())])
        order = (
            f"{_path(selection.sort)} {'desc' if selection.descending else 'asc'} nulls last, "
            if selection.sort
            else ""
        )
        with self._asking(selection, marks) as (cursor, condition, parameters):
            found = cursor.execute(
                # Positions first: sorting whole rows would move all of them for a page far down the list.
                f"with page as (select _n from {_source(selection)} where {condition} "
                f"order by {order} _n limit {PAGE_ROWS} offset {(selection.page - 1) * PAGE_ROWS}) "
                f"select {columns} from rows where _n in (from page) order by {order} _n",
                parameters,
            )
            names = [column[0] for column in found.description or ()]
            rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        absent = dict.fromkeys([*_SHOWN, "sorted"])
        return [{**absent, **row, "mark": marks.by_row.get(row["row_id"])} for row in rows]

    def counts(self, selection: Selection, marks: Marks) -> Counts:
        """Totals and facets of a selection, independent of its page; cached.

        Raises:
            BadExpression: the condition is invalid or takes too long.
        """
        on_marks = bool(selection.where or "mark" in selection.chosen)
        chosen = tuple(sorted(selection.chosen.items()))
        key = (selection.text, selection.where, chosen, marks.version if on_marks else None)
        if key not in self._counts:
            self._counts[key] = self._counted(selection, marks)
            while len(self._counts) > _CACHED:
                self._counts.popitem(last=False)
        return self._counts[key] if on_marks else self._marked(self._counts[key], selection, marks)

    def _marked(self, counts: Counts, selection: Selection, marks: Marks) -> Counts:
        """Counts that do not depend on marks, with up-to-date counts of marks: setting a mark requires no recount."""
        with self._asking(selection, marks) as (cursor, condition, parameters):
            found = cursor.execute(
                "select mark, count(*) from rows join marks using (row_id) "
                f"where {condition} group by 1 order by 2 desc",
                parameters,
            ).fetchall()
        marked = dict(found)
        unmarked = counts.rows - sum(marked.values())
        return replace(
            counts, facets={**counts.facets, "mark": {**({UNKNOWN: unmarked} if unmarked else {}), **marked}}
        )

    def _counted(self, selection: Selection, marks: Marks) -> Counts:
        chosen = [self.facets[name] for name in selection.chosen]
        duration = "audio.duration_s" if "audio.duration_s" in self.index.fields else "0"
        columns = [f"{facet.value} as {facet.name}_" for facet in self.facets.values()]
        columns += [f"{facet.chosen} as in_{facet.name}" for facet in chosen]
        groups = [_group(facet, [other for other in chosen if other != facet]) for facet in self.facets.values()]
        total = f"select '', null, count(*), coalesce(sum(d), 0) / 3600 from hits where {_all(chosen)}"
        with self._asking(
            selection.but(chosen={}), marks, {f.name: list(selection.chosen[f.name]) for f in chosen}
        ) as (
            cursor,
            condition,
            parameters,
        ):
            found = cursor.execute(
                f"with hits as materialized (select {', '.join(columns)}, {duration} as d from {_MARKED} "
                f"where {condition}) {' union all '.join([total, *groups])}",
                parameters,
            ).fetchall()
        facets: dict[str, dict[str, int]] = {name: {} for name in self.facets}
        rows, hours = 0, 0.0
        for name, value, count, amount in found:
            if name:
                facets[name][UNKNOWN if value is None else value] = count
            else:
                rows, hours = count, amount
        ordered = {
            name: dict(sorted(values.items(), key=lambda item: (-item[1], item[0]))) for name, values in facets.items()
        }
        return Counts(rows, hours, ordered)

    @contextmanager
    def _asking(
        self, selection: Selection, marks: Marks, more: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[duckdb.DuckDBPyConnection, str, dict[str, Any]]]:
        """A cursor that is interrupted when its time is up, with a condition and its parameters."""
        cursor = self.index.cursor()
        cursor.register("marks", marks.table)
        timer = threading.Timer(self._limit_s, cursor.interrupt)
        timer.start()
        try:
            condition, parameters = self._condition(cursor, selection, marks)
            yield cursor, condition, {**parameters, **(more or {})}
        except duckdb.InterruptException as problem:
            raise BadExpression(too_long(self._limit_s)) from problem
        except duckdb.Error as problem:
            if is_unreadable(problem) or not selection.where:
                raise
            raise BadExpression(_without_query(problem)) from problem
        finally:
            timer.cancel()
            cursor.close()

    def _condition(
        self, cursor: duckdb.DuckDBPyConnection, selection: Selection, marks: Marks
    ) -> tuple[str, dict[str, Any]]:
        parts, parameters = ["true"], dict[str, Any]()
        searched = ", ".join(["' '", *(_path(name) for name in _SEARCHED if name in self.index.fields)])
        for number, word in enumerate(selection.text.split()):
            has = f"contains(strip_accents(lower(concat_ws({searched}))), $word_{number})"
            parts.append(f"({has} or row_id = $id_{number})")
            parameters |= {f"word_{number}": _plain(cursor, word), f"id_{number}": word}
        for name, values in selection.chosen.items():
            parts.append(self.facets[name].chosen)
            parameters[name] = list(values)
        if selection.where:
            parts.append(self._checked(cursor, selection.where, marks))
        return " and ".join(parts), parameters

    def _checked(self, cursor: duckdb.DuckDBPyConnection, where: str, marks: Marks) -> str:
        """A user's condition as part of a query: over the index if it has all the fields, else over the shards."""
        try:
            duckdb.SQLExpression(where)  # rejects everything but a single expression
        except duckdb.Error as problem:
            raise BadExpression(_without_query(problem)) from problem
        inside = f"({where}\n)"  # closed on a new line because the condition may end in a comment
        try:
            cursor.execute(f"select 1 from {_MARKED} where {inside} limit 0")
        except duckdb.BinderException:
            cursor.register("fits", self._read(cursor, inside, marks))
            return "row_id in (from fits)"
        return inside

    def _read(self, cursor: duckdb.DuckDBPyConnection, inside: str, marks: Marks) -> pa.Table:
        """Ids of the rows that satisfy a condition on the shards, which are read once for all pages and facets."""
        key = (inside, marks.version)
        if key not in self._fits:
            self._fits[key] = cursor.sql(f"select row_id from {_WHOLE} where {inside}").to_arrow_table()
            while len(self._fits) > _CACHED_FITS:
                self._fits.popitem(last=False)
        return self._fits[key]


_MARKED = "(select rows.*, mark, note from rows left join marks using (row_id))"
_WHOLE = "(select everything.*, mark, note from everything left join marks using (row_id))"


def _source(selection: Selection) -> str:
    return _MARKED if selection.where or "mark" in selection.chosen else "rows"


def _group(facet: Facet, chosen: list[Facet]) -> str:
    """SQL: rows per value of a facet, among those that match the chosen values of other facets."""
    value, fits = f"{facet.name}_", _all(chosen)
    if not facet.many:
        return f"select '{facet.name}', {value}, count(*), 0 from hits where {fits} group by 2"
    values = f"unnest(case when coalesce(len({value}), 0) = 0 then [null] else {value} end)"
    return f"select '{facet.name}', v, count(*), 0 from (select {values} as v from hits where {fits}) group by 2"


def _all(facets: list[Facet]) -> str:
    return " and ".join(["true", *(f"in_{facet.name}" for facet in facets)])


def _path(name: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def _plain(cursor: duckdb.DuckDBPyConnection, word: str) -> str:
    """A word in lower case and without accents, as the search compares it."""
    return str(cursor.execute("select strip_accents(lower($word))", {"word": word}).fetchall()[0][0])


def too_long(limit_s: float) -> str:
    """The message about a query that was stopped."""
    return f"this took longer than {limit_s:g} s and was stopped"


def _without_query(problem: duckdb.Error) -> str:
    """DuckDB's message without the query, shortened because it may quote values of any length."""
    return str(problem).partition("\n\nLINE")[0][:_LONGEST_PROBLEM]
