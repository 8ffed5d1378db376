"""The model card of an autoencoder run: training data and reconstruction of held-out songs."""

import pyarrow.compute as pc

from pipeline.train.audio import DatasetAudio
from pipeline.train.card_page import write_page
from training.autoencoder.config import AutoencoderTrainConfig
from training.data.recordings import RATE_HZ, held_out
from training.run.run_folder import RunFolder


def write_card(folder: RunFolder, config: AutoencoderTrainConfig, audio: DatasetAudio) -> None:
    """Write README.md of a run that has a checkpoint.

    Args:
        folder: the run's folder.
        config: the run's settings.
        audio: the run's recordings.
    """
    steps, figures = folder.steps(), folder.figures()
    if not steps or not figures:
        return
    out = held_out(audio.recordings, config.data.validation_share)
    songs = audio.table.append_column("hours", pc.divide(audio.table["samples"], RATE_HZ * 3600.0)).filter(~out)
    licenses = songs.group_by("license").aggregate([("hours", "sum"), ("hours", "count")]).sort_by("license")
    write_page(
        folder,
        "autoencoder_card.md.txt",
        config,
        phases=[(name, phase) for name, phase in config.phases() if phase.steps],
        last=figures[-1],
        validated=[step for step in figures if "validation/loss" in step],
        songs=len(songs),
        held_out=int(out.sum()),
        fingerprint=audio.fingerprint,
        licenses=licenses.to_pylist(),
        peak_gb=max(step["peak_memory_gb"] for step in figures),
    )
