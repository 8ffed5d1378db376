"""Prompts, lyrics and voices as the conditions of a batch, through the very code that shards went through."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from stages import lyric_tokens
from stages.text.language import LANGUAGES, known
from training.sampling.conditions import Conditions
from training.sampling.errors import SamplingError
from training.sampling.text_encoder import TextEncoder, load_text_encoder

__all__ = ["MAX_LYRIC_TOKENS", "TextEncoder", "load_text_encoder", "lyric_ids", "make_conditions"]

MAX_LYRIC_TOKENS = 4096

_NO_TOKEN = 0  # what lyrics are padded with


def make_conditions(
    prompts: Sequence[str],
    lyrics: Sequence[str],
    *,
    text_encoder: TextEncoder,
    vocabulary: Tokenizer | None,
    speaker_dim: int,
    language: str | None = None,
    speaker: Tensor | None = None,
    weakened_text: bool = False,
) -> Conditions:
    """Everything that a batch of songs is generated from, on the CPU.

    Args:
        prompts: one description a song.
        lyrics: one text a song, or one for all; empty is none. See `lyric_ids`.
        text_encoder: reads the prompts.
        vocabulary: the model's lyric vocabulary (`stages.lyric_tokens.load_vocabulary`).
        speaker_dim: size of a speaker embedding.
        language: of lyric lines whose own language is unsure.
        speaker: embedding [speaker_dim] of all songs or [B, speaker_dim]; by default zeros, no particular voice.
        weakened_text: add the weakened states that entropy-rectifying guidance on the tag needs.

    Raises:
        SamplingError: an empty prompt, lyrics that do not fit, or a speaker of another size.
    """
    prompts = [_prompt(text, index) for index, text in enumerate(prompts, 1)]
    if not prompts:
        raise SamplingError("no prompt: give at least one")
    if len(lyrics) not in {1, len(prompts)}:
        raise SamplingError(f"{len(lyrics)} lyrics for {len(prompts)} prompts: give one for each, or one for all")
    tokens, lyric_mask = _lyrics(lyrics, vocabulary, language)
    text, text_mask = text_encoder.encode(prompts)
    return Conditions(
        text=text,
        text_mask=text_mask,
        text_null=text_encoder.encode(prompts, weakened=True)[0] if weakened_text else None,
        speaker=_speakers(speaker, len(prompts), speaker_dim),
        lyrics=tokens.expand(len(prompts), -1),
        lyric_mask=lyric_mask.expand(len(prompts), -1),
    )


def lyric_ids(lyrics: str, vocabulary: Tokenizer | None, language: str | None = None) -> list[int]:
    """Token ids of a lyrics file: lines of text under structure tags such as `[verse]`.

    Without a word there are no ids, which the model takes for lyrics left open; `[inst]` asks for an instrumental.

    Args:
        lyrics: whole text, with line ends of any system.
        vocabulary: the model's; None where the checkpoint brings none.
        language: of lines whose own language is unsure; by default what most of the others are in.

    Raises:
        SamplingError: an unknown language, no vocabulary, or more than `MAX_LYRIC_TOKENS`.
    """
    if language is not None and known(language) is None:
        raise SamplingError(f"unknown lyrics language {language!r}: take one of {', '.join(LANGUAGES)}")
    text = "\n".join(lyrics.removeprefix("\ufeff").splitlines()).strip()
    if not text:
        return []
    if vocabulary is None:
        raise SamplingError(
            "the checkpoint brings no lyric vocabulary: put it there as lyric_vocabulary.json, or name the file with"
            " `vocabulary`; without one leave lyrics empty"
        )
    ids = lyric_tokens.encode(text, language, vocabulary)
    if (surplus := len(ids) - MAX_LYRIC_TOKENS) > 0:
        lines = len(text.splitlines())
        raise SamplingError(
            f"the lyrics are {len(ids)} tokens long and the model reads {MAX_LYRIC_TOKENS}: cut {surplus} tokens,"
            f" about {-(-lines * surplus // len(ids))} of the {lines} lines"
        )
    return ids


def _prompt(text: str, number: int) -> str:
    if not text.strip():
        raise SamplingError(f"prompt {number} is empty: describe the music, e.g. 'slow piano ballad, female voice'")
    return text.strip()


def _lyrics(lyrics: Sequence[str], vocabulary: Tokenizer | None, language: str | None) -> tuple[Tensor, Tensor]:
    """Ids and mask [lyrics, L] of lyrics, padded to the longest and to one token at least."""
    songs = [lyric_ids(text, vocabulary, language) for text in lyrics]
    length = max(1, *map(len, songs))
    ids = torch.tensor([song + [_NO_TOKEN] * (length - len(song)) for song in songs])
    return ids, torch.tensor([[1] * len(song) + [0] * (length - len(song)) for song in songs])


def _speakers(speaker: Tensor | None, songs: int, dim: int) -> Tensor:
    if speaker is None:
        return torch.zeros(songs, dim)
    if speaker.shape not in {(dim,), (songs, dim)}:
        raise SamplingError(
            f"a speaker embedding of this model has {dim} numbers, one for all songs or one for each of {songs}:"
            f" [{dim}] or [{songs}, {dim}], not {list(speaker.shape)}"
        )
    if not speaker.isfinite().all():
        raise SamplingError("the speaker embedding holds NaN or infinity: compute it anew")
    return speaker.float().expand(songs, dim)
