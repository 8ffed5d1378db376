"""Export a speaker run as an encoder that the stage `speaker` loads."""

from pathlib import Path

from stages.nets.omni_scale import SpeakerEncoder
from training.run.run_folder import RunFolder, RunProblem


def export_speaker_encoder(run: Path, out: Path, *, step: int | None = None) -> Path:
    """Write the encoder of a run as `config.json` and safetensors. Neither the dataset nor the segments are needed.

    Args:
        run: the run's folder.
        out: a new or empty folder.
        step: step of the run's checkpoint; None is the last one.

    Returns:
        The folder.

    Raises:
        RunProblem: no such step, or the folder is not empty.
    """
    folder = RunFolder(run)
    step = folder.chosen(step)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunProblem(f"{out} is not empty: choose a new folder")
    encoder = SpeakerEncoder(**folder.progress(step)["model"])
    weights = {f"encoder.{name}": weight for name, weight in encoder.state_dict().items()}
    folder.load(step, {"model": weights})
    encoder.load_state_dict({name.removeprefix("encoder."): weight for name, weight in weights.items()})
    encoder.save_pretrained(out)
    return out
