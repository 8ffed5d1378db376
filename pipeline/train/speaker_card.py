"""The model card of a speaker run: voices, and error rates on held-out singers."""

from collections import Counter
from collections.abc import Mapping

from pipeline.train.card_page import evenly_spaced, write_page
from training.run.run_folder import RunFolder
from training.speaker.config import SpeakerConfig
from training.speaker.voices import Voices


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
    licenses: Counter[str] = Counter()
    for song in voices.songs:
        licenses[song.license] += song.segments
    write_page(
        folder,
        "speaker_card.md.txt",
        config,
        voices=voices,
        licenses=licenses,
        failed=failed,
        figures=evenly_spaced([step for step in figures if "validation/eer" in step] or figures),
    )
