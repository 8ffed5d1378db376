"""Two datasets side by side on the terminal."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.view.comparison import Comparison, Pair, Row, Shift

_EXAMPLES_SHOWN = 5


def show_comparison(console: Console, a: str, b: str, found: Comparison) -> None:
    """Print counts and hours, what was turned away, distributions, values, plans, and rows with different verdicts."""
    console.print(f"[bold]a[/] {escape(a)}\n[bold]b[/] {escape(b)}", highlight=False)
    console.print(_pairs("", {**_titled("rows", found.rows), **_titled("hours", found.hours), **found.reasons}))
    if found.shifts:
        console.print(_shifts(found.shifts))
    if found.values:
        console.print(_values(found.values))
    console.print("[bold]Plan of b against a[/]: " + ("the same" if not found.plan else ""))
    for line in found.plan:
        console.print(f"  {escape(line)}", highlight=False)
    moved = sum(change.rows for change in found.moved)
    console.print(
        f"[bold]Rows[/] (matched by {found.matched_by}): {found.only_a} only in a, {found.only_b} only in b, "
        f"{moved} with different verdicts"
    )
    for change in found.moved:
        console.print(f"  {change.rows}: {escape(change.a)} -> {escape(change.b)}", highlight=False)
    examples = [row for rows in found.examples.values() for row in rows[:_EXAMPLES_SHOWN]]
    if examples:
        console.print(_examples(examples))


def _table(*heads: str) -> Table:
    return Table(*heads, box=None, padding=(0, 2, 0, 0), header_style="bold")


def _titled(title: str, pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    return {f"{name} {title}": pair for name, pair in pairs.items()}


def _pairs(head: str, pairs: Mapping[str, Pair]) -> Table:
    table = _table(head, "a", "b", "b - a")
    for name, pair in pairs.items():
        difference = pair.b - pair.a
        table.add_row(escape(name), _figure(pair.a), _figure(pair.b), f"{difference:+,.6g}" if difference else "")
    return table


def _shifts(shifts: Iterable[Shift]) -> Table:
    table = _table("Kept rows", "a: 25 %", "median", "75 %", "b: 25 %", "median", "75 %", "shift 0..1")
    for shift in shifts:
        points = ("-" if point is None else f"{point:.4g}" for point in (*shift.a, *shift.b))
        table.add_row(shift.column, *points, "-" if shift.distance is None else f"{shift.distance:.2f}")
    return table


def _values(values: Mapping[str, Mapping[str, Pair]]) -> Table:
    """The most common values, as `value a/b`."""
    table = _table("Most common, rows in a/b", "")
    table.columns[1].no_wrap, table.columns[1].overflow = True, "ellipsis"
    for column, pairs in values.items():
        listed = [f"{value} {_figure(pair.a)}/{_figure(pair.b)}" for value, pair in pairs.items()]
        table.add_row(column, escape(", ".join(listed)))
    return table


def _examples(rows: Iterable[Row]) -> Table:
    table = _table("Examples", "row", "a", "b")
    for row in rows:
        cells = (row.title or row.uri or "", row.row_id[:12], row.a or "absent", row.b or "absent")
        table.add_row(*map(escape, cells))
    return table


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) or value.is_integer() else f"{value:,.3f}"
