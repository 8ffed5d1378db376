"""The page: the form on the left, the session's takes on the right; one generation at a time."""

import os
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from pydantic import ValidationError
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline.ui.form import Form
from pipeline.ui.take import SessionTake
from pipeline.ui.tasks import TASKS
from pipeline.ui.waveforms import peaks, take_decks
from training.sampling import Clip, Sampler, SamplingError, Step
from training.sampling.audio import read_audio, write_audio
from training.sampling.sampler import SAMPLE_RATE_HZ

LOOPBACK = "127.0.0.1"
_MAX_WAITING = 8
_PROGRESS = gr.Progress()

# Against DNS rebinding: another site could resolve its own name to this machine to read the page.
_LOCAL_NAMES = Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])

# System fonts: the page loads nothing from elsewhere.
_THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
    font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
)
_CSS = Path(__file__).parent / "assets" / "page.css"


class _Stopped(Exception):  # noqa: N818
    """The user has stopped the current generation."""


class Page:
    """The page of one sampler.

    Args:
        sampler: the loaded sampler.
        loaded: the settings it was loaded with, including `checkpoint`; takes record them.
        folder: folder for clips; must be Gradio's temporary folder, the only one that it serves.
    """

    def __init__(self, sampler: Sampler, loaded: Mapping[str, Any], folder: Path) -> None:
        self._sampler = sampler
        self._loaded = loaded
        self._folder = folder
        self._stop = threading.Event()
        self.blocks = gr.Blocks(title="songmill", analytics_enabled=False, fill_width=True)
        with self.blocks:
            self._lay_out()

    def _lay_out(self) -> None:
        gr.HTML(f"<h1>songmill</h1><p>{escape(Path(self._loaded['checkpoint']).name)}</p>", elem_id="heading")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=6, min_width=340):
                self._form = Form()
            with gr.Column(scale=5, min_width=340, elem_id="results"):
                with gr.Row(elem_id="actions"):
                    generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                    stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=90)
                status = gr.Markdown(elem_id="status")
                decks = take_decks()
        self._takes = gr.State([])

        fields = self._form.fields
        generate.click(
            self._generate,
            {*fields.values(), self._takes},
            [self._takes, decks, status, fields["seed"], fields["retake_seed"]],
            show_progress_on=status,
            concurrency_limit=1,
            api_visibility="private",
        )
        stop.click(self._stop.set, queue=False, api_visibility="private")
        fields["source"].change(
            self._show_source,
            fields["source"],
            [self._form.window, fields["repaint_start"], fields["repaint_end"]],
            show_progress="hidden",
            api_visibility="private",
        )
        decks.source(
            _use_as_source,
            [self._takes, fields["task"]],
            [fields["source"], fields["task"]],
            show_progress="hidden",
            api_visibility="private",
        )

    def _generate(self, values: dict[Any, Any], progress: gr.Progress = _PROGRESS) -> tuple[Any, ...]:
        self._stop.clear()

        def on_step(step: Step) -> None:
            if self._stop.is_set():
                raise _Stopped
            progress((step.index, step.steps), desc="Generating" if step.index < step.steps else "Decoding")

        progress(0, desc="Preparing")
        with self._shown_errors():
            call = self._form.call(values)
            clip = self._sampler.generate(**call, on_step=on_step)[0]
            take = self._keep(clip, call, number=len(values[self._takes]) + 1)
        takes = [*values[self._takes], take]
        return takes, [one.shown for one in takes], _timing(clip, take), clip.seed, clip.retake_seed

    def _keep(self, clip: Clip, call: Mapping[str, Any], number: int) -> SessionTake:
        path = self._folder / f"{uuid.uuid4().hex}.wav"
        write_audio(path, clip.waveform, SAMPLE_RATE_HZ)
        return SessionTake(
            number=number,
            path=path,
            peaks=peaks(clip.waveform),
            duration=clip.waveform.shape[1] / SAMPLE_RATE_HZ,
            call={**call, "seeds": clip.seed, "retake_seeds": clip.retake_seed},
            loaded=self._loaded,
        )

    def _show_source(self, path: str | None) -> tuple[dict[str, Any] | None, float, float | None]:
        """The source's waveform, with the middle third as the window."""
        if path is None:
            return None, 0.0, None
        with self._shown_errors():
            waveform, rate_hz = read_audio(Path(path))
        duration = waveform.shape[1] / rate_hz
        start, end = round(duration / 3, 2), round(2 * duration / 3, 2)
        return {"peaks": peaks(waveform), "duration": round(duration, 3), "start": start, "end": end}, start, end

    @contextmanager
    def _shown_errors(self) -> Iterator[None]:
        """Show errors that the user can fix on the page, escaped."""
        try:
            yield
        except _Stopped:
            raise _problem("Stopped") from None
        except (SamplingError, ValidationError) as error:
            raise _problem(self._form.format_error(error).replace(f"{self._folder}{os.sep}", "")) from error
        except torch.cuda.OutOfMemoryError as error:
            raise _problem("The GPU's memory is too small: try a shorter duration, --offload or --int8") from error


@contextmanager
def private_folder() -> Iterator[Path]:
    """A temporary folder for uploads and clips that no other user can read.

    Gradio's default is one folder with a known name for all users of the machine.
    """
    with tempfile.TemporaryDirectory(prefix="songmill-ui-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        yield Path(folder)


@contextmanager
def serve(page: Page, port: int | None, *, browser: bool = False) -> Iterator[str]:
    """Serve the page on the loopback interface; yields its address.

    Args:
        page: the page to serve.
        port: port; None takes the first free one from 7860 on.
        browser: whether to open the page in a browser.
    """
    # Gradio checks its own server over HTTP, which must not go through a proxy.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy", os.environ.get("NO_PROXY")), LOOPBACK]))
    page.blocks.queue(max_size=_MAX_WAITING, default_concurrency_limit=4)
    _, address, _ = page.blocks.launch(
        server_name=LOOPBACK,
        server_port=port,
        share=False,
        inbrowser=browser,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        theme=_THEME,
        css_paths=_CSS,
        app_kwargs={"middleware": [_LOCAL_NAMES]},
    )
    try:
        yield address
    finally:
        page.blocks.close(verbose=False)


def _use_as_source(takes: list[SessionTake], task: str, event: gr.EventData) -> tuple[str, str]:
    """The take's file, and the current task if it takes a source, else repaint."""
    return str(takes[event.take].path), task if "source" in TASKS[task].fields else "repaint"


def _timing(clip: Clip, take: SessionTake) -> str:
    total_s = sum(clip.seconds.values())
    return f"{take.duration:.1f} s of audio in {total_s:.1f} s, {take.duration / total_s:.1f} x real time"


def _problem(message: str) -> gr.Error:
    return gr.Error(escape(message), print_exception=False)
