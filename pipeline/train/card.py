"""The model card of a transformer run: data, losses, memory and settings."""

from pipeline.train.card_page import evenly_spaced, write_page
from training.data import Epoch, SongIndex
from training.dit.config import TrainConfig
from training.dit.memory_estimate import MemoryEstimate
from training.run.run_folder import RunFolder


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
    write_page(
        folder,
        "card.md.txt",
        config,
        losses=evenly_spaced(figures),
        songs=trained_on,
        padding=Epoch(trained_on.column("frames"), config.data, progress["stream"]["epoch"], workers).padding,
        hours=progress["stream"]["hours"],
        memory=memory,
        peak_gb=max(step["peak_memory_gb"] for step in figures),
    )
