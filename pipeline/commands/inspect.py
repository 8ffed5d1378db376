"""`songmill inspect`: what a dataset contains, on the terminal, as a page, as JSON, or as the result of a query."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.exit_codes import USAGE_PROBLEM, fail
from pipeline.commands.options import AsJson, Dataset
from pipeline.commands.output import print_json, wide_console


def inspect_command(
    dataset: Dataset,
    as_json: AsJson = False,
    sql: Annotated[str | None, typer.Option(help="Query over the views tracks and quarantine.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a web page for viewing and listening.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="With --html: how many rows to sample over all verdicts.")] = 100,
    seed: Annotated[int, typer.Option(help="With --html: seed of the sample.")] = 0,
    compare: Annotated[Path | None, typer.Option(help="Another dataset to compare with.")] = None,
) -> None:
    """Show what a dataset contains: counts, hours, verdicts, distributions, time in stages.

    [bold]Examples[/]

      songmill inspect dataset

      songmill inspect dataset --sql "select title, rhythm.bpm from tracks order by 2"

      songmill inspect dataset --html report.html --rows 50 --seed 7

      songmill inspect dataset --compare dataset-before
    """
    from pipeline.dataset.stats_cache import current_stats
    from pipeline.view.terminal import show_stats
    from schemas.dataset import Layout

    if sum(map(bool, (sql, html, compare))) > 1:
        fail("give only one of --sql, --html and --compare", USAGE_PROBLEM)
    if html:
        from pipeline.commands.report import report  # here because the audio decoder takes long to import

        report(dataset, html, rows, seed, as_json=as_json)
        return
    if sql:
        _query(dataset, sql, as_json)
        return
    if compare:
        _compare(dataset, compare, as_json)
        return
    stats = current_stats(Layout(dataset))
    if as_json:
        print_json(stats.model_dump())
    else:
        show_stats(wide_console(), str(dataset), stats)


def _query(dataset: Path, sql: str, as_json: bool) -> None:
    import duckdb

    from pipeline.dataset.stats import connect
    from schemas.dataset import Layout

    Layout(dataset).require()
    try:
        found = connect(Layout(dataset)).sql(sql)
        if as_json:
            print_json(found.to_arrow_table().to_pylist() if found else [])
        elif found:
            found.show(max_width=max(80, wide_console().width))
    except duckdb.Error as error:
        fail(f"--sql: {error}", USAGE_PROBLEM)


def _compare(dataset: Path, other: Path, as_json: bool) -> None:
    from pipeline.commands.compare import show_comparison
    from pipeline.view.comparison import compare
    from schemas.dataset import Layout

    found = compare(Layout(dataset), Layout(other))
    if as_json:
        print_json(found.model_dump())
    else:
        show_comparison(wide_console(), str(dataset), str(other), found)
