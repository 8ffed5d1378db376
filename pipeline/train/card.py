"""The model card of a transformer run: data, losses, memory and settings."""

from importlib import resources

import jinja2
import yaml

from schemas.files import write_durably
from training.data import Epoch, SongIndex
from training.dit.config import TrainConfig
from training.dit.memory_estimate import MemoryEstimate
from training.run.run_folder import RunFolder

_LOSSES_SHOWN = 12


def write_card(
    folder: RunFolder, config: TrainConfig, songs: SongIndex, workers: int, memory: MemoryEstimate | None
) -> None:
    """Write README.md of a run that has a checkpoint.

    Args:
        folder: the run's folder.
        config: the run's settings.
        songs: the songs it was trained on.
        workers: number of workers.
        memory: the estimate; None for a run that was already complete, which keeps the card it has.
    """
    steps, figures = folder.steps(), folder.figures()
    if not steps or not figures or (memory is None and (folder.root / "README.md").exists()):
        return
    progress = folder.progress(steps[-1])
    trained_on = songs.part("train", config.data.validation_share)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True)  # noqa: S701
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    template = resources.files("pipeline.train").joinpath("card.md.txt").read_text("utf-8")
    text = environment.from_string(template).render(
        name=folder.root.resolve().name,
        step=steps[-1],
        config=config,
        losses=_some(figures),
        songs=trained_on,
        padding=Epoch(trained_on.column("frames"), config.data, progress["stream"]["epoch"], workers).padding,
        hours=progress["stream"]["hours"],
        memory=memory,
        peak_gb=max(step["peak_memory_gb"] for step in figures),
        settings=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    write_durably(folder.root / "README.md", text.encode())


def _some(figures: list[dict[str, float]]) -> list[dict[str, float]]:
    """A few entries, evenly spaced, including the first and the last."""
    last = len(figures) - 1
    places = {round(last * place / (_LOSSES_SHOWN - 1)) for place in range(_LOSSES_SHOWN)}
    return [figures[place] for place in sorted(places)]
