"""What the sampler is given, in the form that the tasks take; or what is wrong with it."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from training.sampling.conditions import Conditions
from training.sampling.errors import SamplingError
from training.sampling.options import SOURCED, SamplingOptions

MAX_SEED = 2**63 - 1


def require_inputs(options: SamplingOptions, source: Any, target: Any) -> None:
    """Source and target must be given to the tasks that take them, and to no other.

    Raises:
        SamplingError: one is missing or too many.
    """
    if options.needs_source != (source is not None):
        raise SamplingError(
            f"task {options.task} starts from a song: name its file with `source`"
            if options.needs_source
            else f"task {options.task} takes no source: leave it out, or choose one of {', '.join(SOURCED)}"
        )
    if (options.task == "edit") != (target is not None):
        raise SamplingError(
            "task edit needs to know what to make of the source: say it with `target_prompt`"
            if target is None
            else f"task {options.task} takes no target: leave it out, or choose edit"
        )


def several(text: str | Sequence[str]) -> list[str]:
    """One text or several."""
    return [text] if isinstance(text, str) else list(text)


def for_each(targets: list[str], prompts: Sequence[str]) -> list[str]:
    """Target prompts, one a prompt.

    Raises:
        SamplingError: their numbers differ.
    """
    if len(targets) not in (1, len(prompts)):
        raise SamplingError(f"{len(targets)} target prompts for {len(prompts)} prompts: give one, or one for each")
    return targets * len(prompts) if len(targets) == 1 else targets


def seeds_of(given: int | Sequence[int] | None, songs: int) -> list[int]:
    """One seed a song: those given, consecutive ones from the one given, or random ones.

    Raises:
        SamplingError: their number differs from the songs', or no generator takes one of them.
    """
    if given is None:
        return [random.getrandbits(32) for _ in range(songs)]
    seeds = [given + song for song in range(songs)] if isinstance(given, int) else list(given)
    if len(seeds) != songs:
        raise SamplingError(f"{len(seeds)} seeds for {songs} songs: give one for each, or the first alone")
    if unfit := [seed for seed in seeds if not 0 <= seed <= MAX_SEED]:
        raise SamplingError(f"the seed {unfit[0]} lies outside 0..{MAX_SEED}")
    return seeds


def require_fit(conditions: Conditions, transformer: Mapping[str, Any]) -> None:
    """Conditions must have the sizes that a transformer of this config reads.

    Raises:
        SamplingError: one of them has another, or a lyric token is unknown.
    """
    sizes = (
        ("text states", conditions.text, transformer["text_embedding_dim"]),
        ("speaker embeddings", conditions.speaker, transformer["speaker_embedding_dim"]),
    )
    for name, tensor, dim in sizes:
        if tensor.shape[-1] != dim:
            raise SamplingError(f"{name} have {tensor.shape[-1]} numbers, and this transformer reads {dim}")
    words = transformer["lyric_encoder_vocab_size"]
    if int(conditions.lyrics.min()) < 0 or int(conditions.lyrics.max()) >= words:
        raise SamplingError(f"lyric tokens must lie in 0..{words - 1}: they are of another vocabulary")
