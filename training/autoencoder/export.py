"""Export an autoencoder run as a codec that `songmill curate`, `sample` and `train export` accept."""

import json
from pathlib import Path

from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

from training.autoencoder.model import SpectrogramAutoencoder
from training.checkpoints.released_layout import load_vocoder, save_codec
from training.model import GriffinLim, MusicDCAE
from training.run.run_folder import RunFolder


def export_codec(run: Path, out: Path, *, step: int | None = None, vocoder: Path | None = None) -> Path:
    """Write `music_dcae_f8c8/` and `music_vocoder/` of a run. The dataset is not needed.

    Args:
        run: the run's folder.
        out: a new or empty folder.
        step: step of the run's checkpoint; None is the last one.
        vocoder: folder that holds the `music_vocoder/` to use; None uses Griffin-Lim, which has no weights.

    Returns:
        The folder.

    Raises:
        RunProblem: no such step.
        CheckpointProblem: the vocoder is damaged or does not fit the codec, or `out` is not empty.
    """
    folder = RunFolder(run)
    step = folder.chosen(step)
    autoencoder = finished_autoencoder(folder, step)
    voice = load_vocoder(vocoder) if vocoder else GriffinLim()
    save_codec(out, MusicDCAE.from_parts(autoencoder, voice))
    return out


def finished_autoencoder(folder: RunFolder, step: int) -> AutoencoderDC:
    """The autoencoder of a run's checkpoint, with the latent normalisation folded into its weights."""
    began_from = json.loads((folder.root / "config.json").read_text())["checkpoint"]
    sizes = folder.progress(step)["model"]
    model = SpectrogramAutoencoder(AutoencoderDC(**sizes), normalise=began_from is None).eval()
    weights = model.state_dict()
    folder.load(step, {"model": weights})
    model.load_state_dict(weights)
    return model.finished()
