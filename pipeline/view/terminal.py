"""A dataset on one screen of the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.dataset.stats import Stats, connect
from pipeline.planning.dag import Dag
from pipeline.planning.plan import Plan
from schemas.config import CurateConfig
from schemas.dataset import Layout

if TYPE_CHECKING:
    from pipeline.curation.pilot import Pilot  # imports Ray

_LISTED = 12
_SONG_S = 200
_REASONS = 8
_STAGE_LINES = 8
_BARS = " ▁▂▃▄▅▆▇█"


def show_stats(console: Console, name: str, stats: Stats) -> None:
    """Print counts, hours, verdicts, distributions, values and stage times: about 40 lines of 120 columns."""
    hours, rows = stats.hours, stats.rows
    waiting = f" + {rows['pending']} pending" if "pending" in rows else ""
    console.print(
        f"[bold]{escape(name)}[/]: {rows['total']} rows = {rows['kept']} kept + {rows['filtered']} filtered + "
        f"{rows['failed']} failed{waiting}; {hours.get('kept', 0):.3f} h kept of {sum(hours.values()):.3f} h; "
        f"{stats.shards} shards{_marks(stats)}"
    )
    for there, table in (
        (stats.verdicts, _verdicts),
        (stats.distributions, _distributions),
        (any(stats.counts.values()), _values),
        (stats.stages, _stages),
    ):
        if there:
            console.print(table(stats))


def sparkline(counts: Sequence[int]) -> str:
    """Bars of a histogram; an empty bin is a blank, any other at least the lowest bar."""
    most = max(counts, default=0)
    return "".join(_BARS[math.ceil(count / most * (len(_BARS) - 1))] if count else _BARS[0] for count in counts)


def show_songs(console: Console, layout: Layout) -> None:
    """Print the columns of the small profile for each kept song, one block per song."""
    songs = connect(layout).sql(_SONGS).to_arrow_table()  # type: ignore[union-attr]
    for song in songs.to_pylist():
        bpm = f"{song['bpm']:.1f} BPM" if song["bpm"] else "no beat"
        console.print(
            f"[bold]{escape(song['title'] or song['uri'])}[/]: {bpm}, {song['key']}, {escape(song['tags'] or '')}"
        )
        console.print(f"  sections: {escape(song['sections'] or '')}", highlight=False)
        if song["language"]:
            matched = f"{song['song_id']} (score {song['score']:.2f})" if song["song_id"] else "none in the library"
            console.print(
                f"  transcript ({song['language']}): {escape(song['text'].replace(chr(10), ' / '))}\n"
                f"  lyrics: {escape(matched)}",
                highlight=False,
            )
        console.print(f"  caption: {escape(song['caption'] or '')}", highlight=False)


_SONGS = """
select title, uri, rhythm.bpm as bpm, key.tonic || ' ' || key.mode as key,
  array_to_string(tags.names[1:4], ', ') as tags,
  transcript.language as language,
  transcript.text as text, lyrics.song_id as song_id, lyrics.score as score, caption.descriptive as caption,
  array_to_string(list_transform(sections.items, lambda i: i.label), ' ') as sections
from tracks order by uri
"""


def show_plan(
    console: Console, config: CurateConfig, dag: Dag, plan: Plan, weights_bytes: Mapping[str, int | None]
) -> None:
    """Print the DAG: columns, models and their size on disk, resources, rows per batch, fused operators, gates."""
    heads = ("pass", "operator", "stage", "engine", "owns", "reads", "models", "weights")
    table = Table(*heads, "cpu", "gpu", "rows", "fingerprint")
    for node in dag.scan:
        table.add_row("scan", "1", *_node_cells(plan, node.column, weights_bytes))
    table.add_section()
    for number, operator in enumerate(dag.operators, 1):
        for node in operator:
            table.add_row("curate", str(number), *_node_cells(plan, node.column, weights_bytes))
    console.print(table)
    if moved := dag.store_bytes(_SONG_S):
        steps = " + ".join(f"{size / 1e6:.0f}" for size in moved)
        console.print(
            f"{len(dag.operators)} operators; a song of {_SONG_S} s puts {sum(moved) / 1e6:.0f} MB ({steps}) into the "
            "object store",
            highlight=False,
        )
    gates = ", ".join(f"{gate.column}.{gate.reason}={gate.bound:g}" for gate in dag.gates) or "none"
    dedup = f"similarity >= {plan.dedup.threshold:g}" if plan.dedup else "off"
    console.print(f"gates: {gates}\nduplicates: {dedup}\nplan {plan.id}, profile {config.profile}", highlight=False)


def show_pilot(console: Console, pilot: "Pilot") -> None:
    """Print the estimated cost of a thousand hours of raw audio, stage by stage."""
    table = Table("stage", "x real time", "core-hours", "GPU-hours", title="For 1,000 h of audio", title_justify="left")
    for stage in pilot.stages:
        table.add_row(stage.stage, f"{stage.speed:.1f}", f"{stage.core_hours:.1f}", f"{stage.gpu_hours:.2f}")
    table.add_section()
    table.add_row("all", "", f"{pilot.core_hours:.1f}", f"{pilot.gpu_hours:.2f}")
    console.print(table)
    rows = pilot.rows
    console.print(
        f"from a pilot of {rows['total']} songs ({rows['kept']} kept, {rows['filtered']} filtered, {rows['failed']} "
        f"failed), {pilot.audio_hours:.3f} h; without loading models; dataset {pilot.dataset_gb:.2f} GB",
        highlight=False,
    )


def _node_cells(plan: Plan, column: str, weights_bytes: Mapping[str, int | None]) -> list[str]:
    stage = plan.columns[column]
    resources, size = stage.resources, weights_bytes[stage.name]
    return [
        stage.name,
        stage.engine,
        ", ".join([column, *stage.working]),
        ", ".join(stage.reads),
        ", ".join(stage.models) or "-",
        "-" if not stage.models else "?" if size is None else f"{size / 1e6:.0f} MB",
        f"{resources['cpus']:g}",
        f"{resources['gpus']:g}",
        f"{resources['batch_rows']:g}",
        stage.fingerprint[:8],
    ]


def _table(*heads: str) -> Table:
    """A table without borders, which would take a third of the screen."""
    return Table(*heads, box=None, padding=(0, 2, 0, 0), header_style="bold")


def _marks(stats: Stats) -> str:
    counts = " and ".join(f"{count} {mark}" for mark, count in sorted(stats.marks.items()))
    return f"; marked by people: {counts}" if counts else ""


def _verdicts(stats: Stats) -> Table:
    table = _table("Turned away", "stage", "reason", "rows", "hours")
    for verdict in stats.verdicts[:_REASONS]:
        cells = (verdict.status, verdict.stage, verdict.reason, str(verdict.rows), f"{verdict.hours:.3f}")
        table.add_row(*map(escape, cells))
    if rest := stats.verdicts[_REASONS:]:
        rows, hours = sum(verdict.rows for verdict in rest), sum(verdict.hours for verdict in rest)
        table.add_row(f"{len(rest)} more", "", "", str(rows), f"{hours:.3f}")
    return table


def _distributions(stats: Stats) -> Table:
    table = _table("Kept rows", "rows", "min", "25 %", "median", "75 %", "max", "from the 1st to the 99th percentile")
    for spread in stats.distributions:
        points = (spread.minimum, spread.p25, spread.median, spread.p75, spread.maximum)
        cells = ("-" if value is None else f"{value:.4g}" for value in points)
        table.add_row(spread.column, str(spread.count), *cells, sparkline(spread.counts))
    return table


def _values(stats: Stats) -> Table:
    """One line per column, truncated to the width; `--json` has everything."""
    table = Table("Most common", "", box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.columns[1].no_wrap, table.columns[1].overflow = True, "ellipsis"
    if stats.vocal_share is not None:
        table.add_row("vocal share", f"{stats.vocal_share:.1%} of hours")
    for column, values in stats.counts.items():
        if values and column != "vocals.has_vocals":
            hours = stats.hours_of.get(column, {}) if column == "license" else {}
            table.add_row(column, escape(_shortened(values, hours)))
    return table


def _shortened(values: Mapping[str, int], hours: Mapping[str, float]) -> str:
    listed = [
        f"{value} ({count}{f', {hours[value]:.2f} h' if value in hours else ''})"
        for value, count in list(values.items())[:_LISTED]
    ]
    more = len(values) - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more else "")


def _stages(stats: Stats) -> Table:
    """Stages side by side, each with its seconds and its speed relative to real time."""
    blocks = -(-len(stats.stages) // _STAGE_LINES)
    table = _table("Time in stages", *("seconds", "x real time", "") * blocks)
    for line in range(min(_STAGE_LINES, len(stats.stages))):
        cells = []
        for stage in stats.stages[line::_STAGE_LINES]:
            cells += [escape(stage.stage), f"{stage.seconds:.2f}", f"{stage.speed:.1f}" if stage.audio_s else "-"]
        table.add_row(*cells)
    return table
