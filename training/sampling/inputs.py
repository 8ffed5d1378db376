"""Checks and normalises the sampler's inputs."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from training.sampling.conditions import Conditions
from training.sampling.errors import SamplingError
from training.sampling.options import SOURCED, SamplingOptions

MAX_SEED = 2**63 - 1


def require_inputs(options: SamplingOptions, source: Any, target: Any) -> None:
    """Require a source and a target for the tasks that use them, and for no others.

    Raises:
        SamplingError: one is missing, or not used by the task.
    """
    if options.needs_source != (source is not None):
        raise SamplingError(
            f"task {options.task} starts from a song: name its file with `source`"
            if options.needs_source
            else f"task {options.task} takes no source: leave it out, or choose one of {', '.join(SOURCED)}"
        )
    if (options.task == "edit") != (target is not None):
        raise SamplingError(
            "task edit needs a description of the result: give it as `target_prompt`"
            if target is None
            else f"task {options.task} takes no target: leave it out, or choose edit"
        )


def several(text: str | Sequence[str]) -> list[str]:
    """A list of texts from one or several."""
    return [text] if isinstance(text, str) else list(text)


def for_each(targets: list[str], prompts: Sequence[str]) -> list[str]:
    """One target prompt per prompt; a single one is repeated.

    Raises:
        SamplingError: there are several, but not one per prompt.
    """
    if len(targets) not in (1, len(prompts)):
        raise SamplingError(f"{len(targets)} target prompts for {len(prompts)} prompts: give one, or one for each")
    return targets * len(prompts) if len(targets) == 1 else targets


def seeds_of(given: int | Sequence[int] | None, songs: int) -> list[int]:
    """One seed per song: those given, consecutive ones from a single one, or random ones for None.

    Raises:
        SamplingError: there are more or fewer seeds than songs, or one is outside 0..`MAX_SEED`.
    """
    if given is None:
        return [random.getrandbits(32) for _ in range(songs)]
    seeds = [given + song for song in range(songs)] if isinstance(given, int) else list(given)
    if len(seeds) != songs:
        raise SamplingError(f"{len(seeds)} seeds for {songs} songs: give one for each, or only the first")
    if unfit := [seed for seed in seeds if not 0 <= seed <= MAX_SEED]:
        raise SamplingError(f"the seed {unfit[0]} lies outside 0..{MAX_SEED}")
    return seeds


def require_fit(conditions: Conditions, transformer: Mapping[str, Any]) -> None:
    """Require conditions to have the widths in a transformer's config.

    Raises:
        SamplingError: a width differs, or a lyric token is not in the vocabulary.
    """
    sizes = (
        ("text states", conditions.text, transformer["text_embedding_dim"]),
        ("speaker embeddings", conditions.speaker, transformer["speaker_embedding_dim"]),
    )
    for name, tensor, dim in sizes:
        if tensor.shape[-1] != dim:
            raise SamplingError(f"{name} have {tensor.shape[-1]} dimensions, but this transformer expects {dim}")
    words = transformer["lyric_encoder_vocab_size"]
    if int(conditions.lyrics.min()) < 0 or int(conditions.lyrics.max()) >= words:
        raise SamplingError(f"lyric tokens must lie in 0..{words - 1}: they come from another vocabulary")
