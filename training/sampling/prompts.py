"""Encodes prompts, lyrics and voices as conditions, with the same code that curation uses."""

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

_NO_TOKEN = 0  # padding of lyrics


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
    """Encode the conditions of a batch of songs, on the CPU.

    Args:
        prompts: one description per song.
        lyrics: one text per song, or one for all; empty is none. See `lyric_ids`.
        text_encoder: encodes the prompts.
        vocabulary: the model's lyric vocabulary (`stages.lyric_tokens.load_vocabulary`).
        speaker_dim: width of a speaker embedding.
        language: language of lyric lines whose own cannot be detected reliably.
        speaker: embedding [speaker_dim] for all songs, or [B, speaker_dim]; None is no particular voice (zeros).
        weakened_text: also encode with the weakened encoder, for entropy-rectifying guidance on the prompt.

    Raises:
        SamplingError: no or an empty prompt, lyrics that do not fit, or a speaker embedding of another width.
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
    """Token ids of lyrics: lines of text under structure tags such as `[verse]`.

    Empty lyrics have no ids, which leaves them to the model; `[inst]` asks for an instrumental.

    Args:
        lyrics: the whole text, with any kind of line ends.
        vocabulary: the model's vocabulary; None if the checkpoint has none.
        language: language of lines whose own cannot be detected reliably; by default that of most other lines.

    Raises:
        SamplingError: an unknown language, no vocabulary, or more than `MAX_LYRIC_TOKENS` tokens.
    """
    if language is not None and known(language) is None:
        raise SamplingError(f"unknown lyrics language {language!r}: take one of {', '.join(LANGUAGES)}")
    text = "\n".join(lyrics.removeprefix("\ufeff").splitlines()).strip()
    if not text:
        return []
    if vocabulary is None:
        raise SamplingError(
            "the checkpoint has no lyric vocabulary: put it there as lyric_vocabulary.json, or name the file with"
            " `vocabulary`; without one, leave lyrics empty"
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
    """Ids and mask of lyrics, each [lyrics, L], padded to the longest and to at least one token."""
    songs = [lyric_ids(text, vocabulary, language) for text in lyrics]
    length = max(1, *map(len, songs))
    ids = torch.tensor([song + [_NO_TOKEN] * (length - len(song)) for song in songs])
    return ids, torch.tensor([[1] * len(song) + [0] * (length - len(song)) for song in songs])


def _speakers(speaker: Tensor | None, songs: int, dim: int) -> Tensor:
    if speaker is None:
        return torch.zeros(songs, dim)
    if speaker.shape not in {(dim,), (songs, dim)}:
        raise SamplingError(
            f"a speaker embedding of this model has {dim} dimensions, one for all songs or one for each of {songs}:"
            f" [{dim}] or [{songs}, {dim}], not {list(speaker.shape)}"
        )
    if not speaker.isfinite().all():
        raise SamplingError("the speaker embedding holds NaN or infinity: compute it again")
    return speaker.float().expand(songs, dim)
