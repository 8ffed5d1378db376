"""The model card of a speaker run: voices, and error rates on held-out singers."""

from collections import Counter
from collections.abc import Mapping
from importlib import resources

import jinja2
import yaml

from schemas.files import write_durably
from training.run.run_folder import RunFolder
from training.speaker.config import SpeakerConfig
from training.speaker.voices import Voices

_ROWS = 12


def write_card(folder: RunFolder, config: SpeakerConfig, voices: Voices, failed: Mapping[str, str]) -> None:
    """Write README.md of a run that has a checkpoint.

    Args:
        folder: the run's folder.
        config: the run's settings.
        voices: the voices it was trained on.
        failed: track id -> why a song was left out.
    """
    steps, figures = folder.steps(), folder.figures()
    if not steps or not figures:
        return
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True)  # noqa: S701
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    licenses: Counter[str] = Counter()
    for song in voices.songs:
        licenses[song.license] += song.segments
    template = resources.files("pipeline.train").joinpath("speaker_card.md.txt").read_text("utf-8")
    text = environment.from_string(template).render(
        name=folder.root.resolve().name,
        step=steps[-1],
        config=config,
        voices=voices,
        licenses=licenses,
        failed=failed,
        figures=_some([step for step in figures if "validation/eer" in step] or figures),
        settings=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    write_durably(folder.root / "README.md", text.encode())


def _some(figures: list[dict[str, float]]) -> list[dict[str, float]]:
    """A few entries, evenly spaced, including the first and the last."""
    last = len(figures) - 1
    return [figures[place] for place in sorted({round(last * row / (_ROWS - 1)) for row in range(_ROWS)})]
