"""`songmill inspect`: what a dataset contains, on the terminal, as a page, as JSON, or as the result of a query."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.exit_codes import USAGE_PROBLEM, fail, unreadable
from pipeline.commands.options import AsJson, Dataset, place
from pipeline.commands.output import print_json, wide_console
from schemas.dataset import Layout


def inspect_command(
    dataset: Dataset,
    as_json: AsJson = False,
    sql: Annotated[str | None, typer.Option(help="Query over the views tracks and quarantine.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a web page for viewing and listening.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="With --html: how many rows to sample over all verdicts.")] = 100,
    seed: Annotated[int, typer.Option(help="With --html: seed of the sample.")] = 0,
    compare: Annotated[
        str | None, typer.Option(parser=place, metavar="DATASET", help="Another dataset to compare with.")
    ] = None,
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

    if sum(map(bool, (sql, html, compare))) > 1:
        fail("give only one of --sql, --html and --compare", USAGE_PROBLEM)
    if html:
        from pipeline.commands.report import report  # here because the audio decoder takes long to import

        report(Layout.at(dataset), html, rows, seed, as_json=as_json)
        return
    if sql:
        _query(Layout.at(dataset), sql, as_json)
        return
    if compare:
        _compare(Layout.at(dataset), Layout.at(compare), as_json)
        return
    stats = current_stats(Layout.at(dataset))
    if as_json:
        print_json(stats.model_dump())
    else:
        show_stats(wide_console(), dataset, stats)


def _query(layout: Layout, sql: str, as_json: bool) -> None:
    import duckdb

    from pipeline.dataset.stats import connect

    layout.require()
    try:
        found = connect(layout).sql(sql)
        if as_json:
            print_json(found.to_arrow_table().to_pylist() if found else [])
        elif found:
            found.show(max_width=max(80, wide_console().width))
    except duckdb.Error as error:
        if unreadable(error):
            raise
        fail(f"--sql: {error}", USAGE_PROBLEM)


def _compare(a: Layout, b: Layout, as_json: bool) -> None:
    from pipeline.commands.compare import show_comparison
    from pipeline.view.comparison import compare

    found = compare(a, b)
    if as_json:
        print_json(found.model_dump())
    else:
        show_comparison(wide_console(), a.url, b.url, found)
