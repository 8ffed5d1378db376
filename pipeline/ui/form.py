"""The form of the page, and the sampler call that it describes."""

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from lingua import IsoCode639_1, Language
from pydantic import ValidationError

from pipeline.ui.tasks import TASKS
from pipeline.ui.waveforms import repaint_window
from stages.text.language import LANGUAGES
from training.sampling.errors import SamplingError
from training.sampling.options import MAX_DURATION_S, Guidance, SamplingOptions, Scheduler

_MAX_SEED = 2**32  # of random seeds; JavaScript represents integers exactly up to 2**53

_TAGS = "[intro] [verse] [pre-chorus] [chorus] [hook] [bridge] [solo] [inst] [break] [outro]"
_DEFAULTS = SamplingOptions()
_ALWAYS = frozenset({"task", "prompt", "lyrics", "language", "infer_steps", "new_seed"})

# The window and the numbers beside it are kept in step in the browser, without the server.
_NUMBERS_OF_WINDOW = "(window) => [window.start, window.end]"
_WINDOW_OF_NUMBERS = """(start, end, window) => window &&
    ({...window, start: Math.max(start ?? 0, 0), end: Math.min(end ?? window.duration, window.duration)})"""


class Form:
    """The left side of the page; must be created within `gr.Blocks`.

    Attributes:
        fields: name of the option or argument -> its component; see `Task.fields`.
        window: the waveform of the source with the window to repaint.
    """

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}  # Any: Gradio adds event methods to components at run time
        self.window: gr.HTML
        self._groups: list[tuple[gr.blocks.BlockContext, list[str]]] = []
        self._open: list[list[str]] = []

        self._choose_task()
        self._give_source()
        self._describe()
        self._set_size()
        with self._group(gr.Accordion("Advanced", open=False)):
            self._tune()
        self._follow()

    def call(self, values: Mapping[gr.components.Component, Any]) -> dict[str, Any]:
        """Arguments for `Sampler.generate`: the fields that the task shows and the user has filled.

        Raises:
            SamplingError: the task needs a source and has none, or the optimal steps are not whole numbers.
        """
        task = values[self.fields["task"]]
        shown = {name: values[self.fields[name]] for name in self.fields if _matters(name, task)}
        given = {name: value for name, value in shown.items() if value is not None and value != ""}
        if "source" in shown and "source" not in given:
            raise SamplingError(f"{TASKS[task].label} works on a source: upload one, or choose a take as the source")
        if "source" in given:
            given["source"] = Path(given["source"])
        if "oss_steps" in given:
            given["oss_steps"] = _numbers(given["oss_steps"])
        drawn = ({"retake_seed"} if task == "retake" else {"seed", "retake_seed"}) if given.pop("new_seed") else set()
        for name in ("seed", "retake_seed"):
            if name in shown:
                seed = given.pop(name, None)
                given[f"{name}s"] = secrets.randbelow(_MAX_SEED) if seed is None or name in drawn else int(seed)
        return {"prompt": "", **given}

    def format_error(self, error: SamplingError | ValidationError) -> str:
        """An error message with the labels of fields in place of their names."""
        labels = {name: f"“{component.label}”" for name, component in self.fields.items()}
        if isinstance(error, ValidationError):
            problems = [(problem["loc"], problem["msg"].removeprefix("Value error, ")) for problem in error.errors()]
            message = "; ".join(f"{loc[0]}: {problem}" if loc else problem for loc, problem in problems)
        else:
            message = str(error)
        options = "|".join(name for name in labels if "_" in name)
        return re.sub(rf"`?\b({options})\b(=False)?`?", lambda named: labels[named[1]], message)

    def _choose_task(self) -> None:
        choices = [(task.label, name) for name, task in TASKS.items()]
        self._add("task", gr.Radio(choices, value="text2music", show_label=False, elem_id="task", container=False))
        self._about = gr.Markdown(TASKS["text2music"].about, elem_id="about")

    def _give_source(self) -> None:
        with self._group(gr.Column()):
            audio = gr.Audio(
                label="Source",
                sources=["upload"],
                type="filepath",
                editable=False,
                buttons=[],
                waveform_options=gr.WaveformOptions(show_recording_waveform=False),  # the window shows the waveform
                elem_id="source",
            )
            self._add("source", audio)
        with self._group(gr.Column()):
            self.window = repaint_window()
            with gr.Row():
                self._seconds("repaint_start", "Window from (s)", 0.0)
                self._seconds("repaint_end", "to (s)", None)
        with self._group(gr.Row()):
            self._seconds("extend_left", "Seconds before the source", 0.0, minimum=0)
            self._seconds("extend_right", "Seconds after the source", 10.0, minimum=0)
        with self._group(gr.Column()):
            self._slide("ref_audio_strength", "Keep of the source", 0, 1, 0.01)

    def _describe(self) -> None:
        self._text("prompt", "Prompt", 2, "warm indie folk, fingerpicked guitar, soft female vocals, 92 bpm")
        self._text("lyrics", "Lyrics", 7, "[inst]", info=f"Structure tags on lines of their own: {_TAGS}")
        with self._group(gr.Column()):
            self._text("target_prompt", "Target prompt", 2, "what the source is to become")
            self._text("target_lyrics", "Target lyrics", 5, "", info="Empty: those of the source.")
            with gr.Row():
                self._slide("n_min", "Skip steps (share)", 0, 1, 0.01)
                self._slide("n_max", "Steer until (share)", 0, 1, 0.01)
                self._slide("n_avg", "Noises averaged", 1, 8, 1)

    def _set_size(self) -> None:
        with gr.Row():
            languages = [("Detect", ""), *((_english_name(code), code) for code in LANGUAGES)]
            self._add("language", gr.Dropdown(languages, value="", label="Language", elem_id="language", min_width=120))
            self._slide("duration", "Duration (s)", 1, MAX_DURATION_S, 1)
        with gr.Row():
            self._slide("infer_steps", "Steps", 1, 200, 1)
            self._slide("guidance_scale", "Guidance scale", 0, 30, 0.5)
        with self._group(gr.Row()):
            self._choose("scheduler_type", "Scheduler", [(name.capitalize(), name) for name in get_args(Scheduler)])
            names = {"apg": "APG", "cfg": "CFG", "cfg_star": "CFG-Zero*"}
            self._choose("cfg_type", "Guidance", [(names[name], name) for name in get_args(Guidance)])
        with gr.Row(elem_id="seeds"):
            for name, label in (("seed", "Seed"), ("retake_seed", "Retake seed")):
                number = gr.Number(0, label=label, precision=0, minimum=0, elem_id=name, min_width=120)
                self._add(name, number)
            self._add("new_seed", gr.Checkbox(True, label="New seed each time", elem_id="new_seed", min_width=160))
        with self._group(gr.Column()):
            self._slide("retake_variance", "Variance", 0, 1, 0.01)

    def _tune(self) -> None:
        with self._group(gr.Row()):
            self._slide("guidance_interval", "Guided share of the steps", 0, 1, 0.01)
            self._slide("guidance_interval_decay", "Decay of the scale", 0, 1, 0.01)
            self._slide("min_guidance_scale", "Decays to", 0, 30, 0.5)
        with self._group(gr.Row()):
            self._slide("guidance_scale_text", "Scale of the text", 0, 30, 0.5, info="Above 1, both: guided apart.")
            self._slide("guidance_scale_lyric", "Scale of the lyrics", 0, 30, 0.5)
            self._slide("omega_scale", "Omega", -50, 50, 0.5, info="Above 0: larger steps.")
        with self._group(gr.Row()):
            for part, label in (("tag", "prompt"), ("lyric", "lyrics"), ("diffusion", "transformer")):
                option = f"use_erg_{part}"
                self._add(option, gr.Checkbox(getattr(_DEFAULTS, option), label=f"ERG: {label}", min_width=170))
        with self._group(gr.Row()):
            self._add(
                "oss_steps",
                gr.Textbox(
                    label="Optimal steps", placeholder="evenly spaced", info="Such as 16, 29, 52, 96, 158, 200."
                ),
            )

    def _follow(self) -> None:
        task, start, end = (self.fields[name] for name in ("task", "repaint_start", "repaint_end"))
        shown = [component for name, component in self.fields.items() if name != "task"]
        groups = [group for group, _ in self._groups]
        outputs = [self._about, *shown, *groups]
        task.change(self._show, task, outputs, show_progress="hidden", queue=False, api_visibility="private")
        for group, names in self._groups:
            group.visible = _any_matters(names, "text2music")
        for name, component in self.fields.items():
            component.visible = _matters(name, "text2music")

        self.window.input(None, self.window, [start, end], js=_NUMBERS_OF_WINDOW)
        for number in (start, end):
            number.input(None, [start, end, self.window], self.window, js=_WINDOW_OF_NUMBERS)

    def _show(self, task: str) -> list[Any]:
        fields = [gr.update(visible=_matters(name, task)) for name in self.fields if name != "task"]
        groups = [gr.update(visible=_any_matters(names, task)) for _, names in self._groups]
        return [TASKS[task].about, *fields, *groups]

    @contextmanager
    def _group(self, context: gr.blocks.BlockContext) -> Iterator[None]:
        """A group that is visible if any of the fields created within is."""
        names: list[str] = []
        self._groups.append((context, names))
        self._open.append(names)
        with context:
            yield
        self._open.pop()

    def _add(self, name: str, component: gr.components.Component) -> None:
        self.fields[name] = component
        for names in self._open:
            names.append(name)

    def _text(self, name: str, label: str, lines: int, placeholder: str, info: str | None = None) -> None:
        box = gr.Textbox(
            label=label, lines=lines, max_lines=3 * lines, placeholder=placeholder, info=info, elem_id=name
        )
        self._add(name, box)

    def _seconds(self, name: str, label: str, value: float | None, minimum: float | None = None) -> None:
        self._add(name, gr.Number(value, label=label, minimum=minimum, step=0.1, min_width=120, elem_id=name))

    def _slide(self, name: str, label: str, low: float, high: float, step: float, info: str | None = None) -> None:
        value = getattr(_DEFAULTS, name)
        slider = gr.Slider(low, high, value, step=step, label=label, info=info, min_width=150, elem_id=name, buttons=[])
        self._add(name, slider)

    def _choose(self, name: str, label: str, choices: list[tuple[str, str]]) -> None:
        self._add(name, gr.Radio(choices, value=getattr(_DEFAULTS, name), label=label, elem_id=name))


def _matters(name: str, task: str) -> bool:
    return name in _ALWAYS or name in TASKS[task].fields


def _any_matters(names: list[str], task: str) -> bool:
    return any(_matters(name, task) for name in names)


def _english_name(code: str) -> str:
    return Language.from_iso_code_639_1(IsoCode639_1.from_str(code.upper())).name.capitalize()


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.replace(",", " ").split())
    except ValueError:
        raise SamplingError(f'optimal steps must be whole numbers such as "16, 29, 52", not "{text}"') from None
