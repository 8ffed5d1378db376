"""The model card of an autoencoder run: training data and reconstruction of held-out songs."""

from importlib import resources

import jinja2
import pyarrow.compute as pc
import yaml

from pipeline.train.audio import DatasetAudio
from schemas.files import write_durably
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
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True)  # noqa: S701
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    template = resources.files("pipeline.train").joinpath("autoencoder_card.md.txt").read_text("utf-8")
    text = environment.from_string(template).render(
        name=folder.root.resolve().name,
        step=steps[-1],
        config=config,
        phases=[(name, phase) for name, phase in config.phases() if phase.steps],
        last=figures[-1],
        validated=[step for step in figures if "validation/loss" in step],
        songs=len(songs),
        held_out=int(out.sum()),
        fingerprint=audio.fingerprint,
        licenses=licenses.to_pylist(),
        peak_gb=max(step["peak_memory_gb"] for step in figures),
        settings=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    write_durably(folder.root / "README.md", text.encode())
