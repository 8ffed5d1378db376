"""`songmill doctor`: what a profile needs, what is available, and how to fix the rest."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.commands.exit_codes import DATA_PROBLEM, guarded

if TYPE_CHECKING:
    from pipeline.doctor.findings import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor_command(
    profile: Annotated[str | None, typer.Option(help="small (two CPU cores) or full (GPUs).")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of a run, as for `songmill curate`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check whether this machine can run a profile: Python, packages, models, Ray, GPU, memory, disk.

    The exit code is 1 if it cannot. Nothing is started, downloaded or changed.

    [bold]Examples[/]

      songmill doctor

      songmill doctor --profile full --json
    """
    from pipeline.doctor.examination import examine
    from pipeline.models.store import ModelStore
    from pipeline.planning.config import build_config

    with guarded():
        settings = build_config(file=config, profile=profile, input="songs", output=Path("dataset"))
        findings = [*examine(settings, ModelStore())]
    problems = sum(finding.state == "problem" for finding in findings)
    if as_json:
        report = {"profile": settings.profile, "can_run": not problems, "findings": [f.model_dump() for f in findings]}
        typer.echo(json.dumps(report, indent=2))
    else:
        _show(findings, settings.profile, problems)
    raise typer.Exit(DATA_PROBLEM if problems else 0)


def _show(findings: "list[Finding]", profile: str, problems: int) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
    widest = max(len(finding.name) for finding in findings)
    for finding in findings:
        state = f"[{_COLOURS[finding.state]}]{finding.state:7}[/]"
        console.print(f"{state}  {finding.name:{widest}}  {escape(finding.found)}")
        if finding.fix:
            console.print(f"{'':{widest + 11}}[bold]{escape(finding.fix)}[/]")
    cannot = f"cannot run here: {problems} problem{'s' if problems > 1 else ''}"
    console.print(f"\nThe profile {profile} {cannot if problems else 'can run here'}")
