"""`songmill explore`: a dataset in the browser, served to this machine only."""

import socket
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.commands.exit_codes import guarded
from pipeline.commands.options import Dataset
from pipeline.errors import UsageProblem
from schemas.dataset import Layout

_FIRST_PORT, _TRIED = 7870, 100
_HOST = "127.0.0.1"
_LET_FINISH_S = 2  # for responses still being sent when the server is stopped


def explore_command(
    dataset: Dataset,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help=f"Default: the first free one from {_FIRST_PORT}.")
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Browse a dataset: filter, sort and listen to its rows, and mark them keep or drop.

    The page is served on 127.0.0.1 and loads nothing from elsewhere. `curate` and `train` honour the marks.

    The first start builds an index of the dataset in your cache folder (songmill/explore; XDG_CACHE_HOME moves it).
    Later starts reuse it; after a run only the files that changed are read. It may be deleted at any time.

    [bold]Examples[/]

      songmill explore dataset --open

      songmill explore dataset --port 8000
    """
    with guarded(), _listening(port) as listener:
        _serve(Layout.at(dataset), listener, browser)


def _serve(layout: Layout, listener: socket.socket, browser: bool) -> None:
    import uvicorn  # here because only this command needs it

    from pipeline.explore.app import Explorer
    from pipeline.explore.conditions import Conditions
    from pipeline.explore.index_cache import IndexCache, index_cache
    from pipeline.explore.live import Live

    port = listener.getsockname()[1]
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        cache = IndexCache(layout, index_cache())
        with _shown(cache.folder) as progress:
            live = Live(cache, progress)
        conditions = stack.enter_context(Conditions())
        conditions.warm()
        app = Explorer(live, [f"{_HOST}:{port}", f"localhost:{port}"], conditions).asgi
        config = uvicorn.Config(
            app,
            log_level="warning",
            use_colors=False,  # its messages about requests must not contain escapes
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_LET_FINISH_S,
        )
        address = f"http://{_HOST}:{port}/"
        typer.echo(f"{address} shows {layout.url}; press Ctrl+C to stop")
        if browser:
            webbrowser.open(address)
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _shown(folder: Path) -> Iterator[Callable[[int, int], None]]:
    """Progress of building the index, on stderr; nothing if it exists already."""
    console = Console(stderr=True)
    columns = (TextColumn("files"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def report(done: int, total: int) -> None:
            if not done:
                typer.echo(
                    f"reading {total:,} files into the index in {folder}, which later starts reuse ...", err=True
                )
            bar.update(task, completed=done, total=total)

        task = bar.add_task("", visible=False)
        yield report


def _listening(port: int | None) -> socket.socket:
    """A socket that is already listening, so that no other process can take the port in the meantime."""
    for tried in [port] if port else range(_FIRST_PORT, _FIRST_PORT + _TRIED):
        with suppress(OSError):
            return socket.create_server((_HOST, tried))
    if port:
        raise UsageProblem(f"--port {port} is taken; use another one, or omit it to have a free one chosen")
    raise UsageProblem(f"no port from {_FIRST_PORT} to {_FIRST_PORT + _TRIED - 1} is free; choose one with --port")
