"""The demo: from a few songs to a new one, with the commands that a user would type, each shown before it runs.

Running it again continues where it stopped, because every command can be resumed.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pipeline.dataset.stats import connect
from pipeline.demo.input import DemoInput
from pipeline.demo.promise import PROMISE, Promise, PromiseBroken, differences_of_dataset, differences_of_song
from pipeline.view.terminal import show_songs
from schemas.dataset import Layout
from training.run.run_folder import RunFolder

Songmill = Callable[[Sequence[str]], int]

_BARS = "▁▂▃▄▅▆▇█"
_BARS_SHOWN = 40


@dataclass(frozen=True)
class Pace:
    """How long the demo takes. The defaults amount to six minutes on two CPU cores.

    Attributes:
        autoencoder: settings of the autoencoder's run, on top of the preset.
        transformer: settings of the transformer's run, on top of the preset.
        duration_s: length of the generated song.
        infer_steps: sampling steps from noise to song.
    """

    autoencoder: tuple[str, ...] = ()
    transformer: tuple[str, ...] = ("data.max_frames_per_song=172", "steps=240", "optimizer.lr=4e-3")
    duration_s: float = 15.0
    infer_steps: int = 30


QUICK = Pace(
    autoencoder=("full.steps=2", "middle.steps=1", "head.steps=1"),
    transformer=("data.max_frames_per_song=32", "steps=4", "log_every=1"),
    duration_s=2.0,
    infer_steps=2,
)


@dataclass(frozen=True)
class _Chapter:
    """A command and its purpose; it is skipped if `made` exists, which it would refuse to overwrite."""

    title: str
    arguments: Sequence[object]
    made: Path | None = None

    @property
    def command(self) -> list[str]:
        return [str(argument) for argument in self.arguments]


class Demo:
    """The demo in a folder.

    Args:
        folder: for all output.
        given: songs and lyrics.
        pace: how long it takes.
        promise: the expected results.
    """

    def __init__(self, folder: Path, given: DemoInput, pace: Pace, promise: Promise = PROMISE) -> None:
        self._given, self._pace, self._promise = given, pace, promise
        self.dataset = folder / "dataset"
        self.autoencoder, self.codec = folder / "autoencoder", folder / "codec"
        self.run, self.checkpoint = folder / "transformer", folder / "checkpoint"
        self.song = folder / "song.wav"

    def tell(self, songmill: Songmill, console: Console) -> int:
        """Run the commands one after the other; return the exit code of the first that fails, or 0.

        Raises:
            PromiseBroken: the dataset or the song differs from what was promised.
        """
        for number, chapter in enumerate(self._chapters(), 1):
            console.print(f"\n[bold cyan]{number}. {chapter.title}[/]")
            command = escape(shlex.join(["songmill", *chapter.command]))
            console.print(f"[green]$ {command}[/]", highlight=False, soft_wrap=True)
            if chapter.made and chapter.made.exists():
                console.print(f"{chapter.made} exists already", highlight=False)
            elif code := songmill(chapter.command):
                return code
            self._look_at_results(chapter, console)
            if differences := self._differences(chapter):
                raise PromiseBroken(differences, self.dataset)
        console.print(
            f"\n[bold]{self.song}[/] is the song. Minutes of training on a handful of songs leave it far from music; "
            "the same commands\nare meant for days of training on thousands. Run "
            f"[bold]songmill ui {self.checkpoint}[/] to try the model in a browser.",
            highlight=False,
        )
        return 0

    def _chapters(self) -> Iterator[_Chapter]:
        """Lazily, because a later command may use what an earlier one found."""
        songs, lyrics = self._given.songs, self._given.library
        rows = "resources.rows_per_shard=2"  # or so few songs would form a single shard, written by one worker
        yield _Chapter(
            "Turn songs into a dataset: judged, described, transcribed",
            ["curate", songs, "--out", self.dataset, "--lyrics", lyrics, "--set", rows],
        )
        yield _Chapter("Look at the dataset", ["inspect", self.dataset])
        yield _Chapter(
            "Train an autoencoder that compresses their sound to latents",
            [
                "train",
                "autoencoder",
                self.dataset,
                "--out",
                self.autoencoder,
                "--preset",
                "tiny",
                *_settings(self._pace.autoencoder),
            ],
        )
        yield _Chapter(
            "Export it as a codec", ["train", "export", self.autoencoder, "--out", self.codec], made=self.codec
        )
        yield _Chapter(
            "Add latents and the other features that training reads",
            ["curate", "--add", "latents,ssl,text_embedding", "--set", f"latents.codec={self.codec}", self.dataset],
        )
        yield _Chapter(
            "Train a transformer that generates latents from captions",
            [
                *("train", "dit", self.dataset, "--out", self.run, "--preset", "tiny", "--ssl", "whisper_base"),
                *_settings(self._pace.transformer),
            ],
        )
        yield _Chapter(
            "Export both as a checkpoint in the layout of ACE-Step",
            [
                *("train", "export", self.run, "--out", self.checkpoint),
                *("--codec", self.codec, "--text-encoder", "e5-small"),
            ],
            made=self.checkpoint,
        )
        yield _Chapter(
            "Generate a new song from a caption",
            [
                *("sample", self.checkpoint, "--prompt", self._caption(), "--duration", self._pace.duration_s),
                *("--steps", self._pace.infer_steps, "--guidance-scale", 3, "--seed", 1, "--out", self.song),
            ],
            made=self.song,
        )

    def _look_at_results(self, chapter: _Chapter, console: Console) -> None:
        what = chapter.command[:2]
        if what[0] == "inspect":
            show_songs(console, Layout.at(self.dataset))
        elif what == ["train", "autoencoder"]:
            console.print(loss_curve(self.autoencoder), highlight=False)
        elif what == ["train", "dit"]:
            console.print(loss_curve(self.run), highlight=False)

    def _differences(self, chapter: _Chapter) -> list[str]:
        """How a chapter's results differ from what was promised."""
        if chapter.command[0] == "inspect":
            return differences_of_dataset(self._promise, Layout.at(self.dataset))
        if chapter.command[0] == "sample":
            return differences_of_song(self.song, self._pace.duration_s)
        return []

    def _caption(self) -> str:
        """The caption of the first instrumental, or else of the first song."""
        with connect(Layout.at(self.dataset)) as songs:
            found = songs.sql("select caption.simplified from tracks order by vocals.has_vocals, uri limit 1")
            return str(found.fetchall()[0][0])


def loss_curve(run: Path) -> str:
    """The losses of a run as a line of bars, between the first and the last."""
    losses = [figures["loss"] for figures in RunFolder(run).figures()]
    step = max(1, -(-len(losses) // _BARS_SHOWN))
    means = [sum(part) / len(part) for part in (losses[at : at + step] for at in range(0, len(losses), step))]
    low, high = min(means), max(means)
    bars = "".join(_BARS[round((mean - low) / max(high - low, 1e-9) * (len(_BARS) - 1))] for mean in means)
    return f"loss {means[0]:.3f} {bars} {means[-1]:.3f}"


def _settings(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]
