"""`songmill ui`: a web page for sampling, served only to this machine."""

import importlib.util
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.exit_codes import guarded
from pipeline.errors import UsageProblem

_SETTINGS = {
    "checkpoint",
    "text_encoder",
    "vocabulary",
    "lora",
    "device",
    "dtype",
    "compile",
    "int8",
    "offload",
    "threads",
}
_ASKED_ON_THE_PAGE = {"prompt": "", "out": "song.wav"}


def ui_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, in the released layout.")],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; by default the first free one from 7860.")
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    lora: Annotated[list[str] | None, typer.Option(help="PATH or PATH:SCALE; repeatable.")] = None,
    text_encoder: Annotated[str | None, typer.Option(help="Folder, or entry of the model store.")] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="Lyric vocabulary, tokenizers JSON.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the transformer.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Use 8-bit weights, for small cards.")] = False,
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep idle models in main memory, for small cards.")
    ] = False,
) -> None:
    """Generate and change songs in the browser. The page is served on 127.0.0.1 and loads nothing from elsewhere.

    [bold]Examples[/]

      songmill ui CKPT --open

      songmill ui CKPT --port 8000 --lora style.safetensors:0.8
    """
    given = {name: value for name, value in locals().items() if name in _SETTINGS and value is not None}
    with guarded():
        if importlib.util.find_spec("gradio") is None:
            raise UsageProblem("the page needs Gradio: pip install 'songmill[ui]'")
        if port and not _is_free(port):
            raise UsageProblem(f"--port {port} is taken; choose another one, or leave it out to use a free one")
        _serve(given, port, browser)


def _serve(given: Mapping[str, Any], port: int | None, browser: bool) -> None:
    # Imported here: torch and Gradio take seconds to import, and the other commands do not need them.
    from pipeline.sampling.config import build_config, resolve
    from pipeline.sampling.sample import load, user_errors
    from pipeline.ui.page import Page, private_folder, serve

    config = resolve(build_config({}, {**given, **_ASKED_ON_THE_PAGE}))
    with user_errors():
        sampler = load(config)
    with private_folder() as folder:
        page = Page(sampler, config.model_dump(mode="json", include=_SETTINGS), folder)
        with serve(page, port, browser=browser) as address:
            typer.echo(f"{address} serves {config.checkpoint}; stop it with Ctrl+C")
            _wait_for_interrupt()


def _is_free(port: int) -> bool:
    """Checked up front, so that no checkpoint is loaded in vain."""
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def _wait_for_interrupt() -> None:
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
