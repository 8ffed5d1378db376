"""Lyrics as token ids for the lyric encoder (ACE-Step v1's scheme)."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from tokenizers import Tokenizer

from schemas import columns
from schemas.files import file_digest
from schemas.lyric_verdicts import SUNG
from stages import base
from stages.text.bpe import BUILT_IN, LINE_END_ID, SPACE, START_ID
from stages.text.cleaning import clean
from stages.text.language import line_languages
from stages.text.lyric_text import INSTRUMENTAL, heard_segments, parse
from stages.text.variants import Timed, Variant, arrange, drawn

__all__ = ["LyricTokens", "clean", "encode", "load_vocabulary"]

_RELEASED_SIZE = 6693  # entries, the added structure tags included; our own vocabularies add none
_STRUCTURE = re.compile(r"\[.*?\]")


def encode(lyrics: str, language: str | None = None, vocabulary: Tokenizer | None = None) -> list[int]:
    """Token ids of whole lyrics: the start id, then each line's ids and the line end; an empty line is just a line end.

    Args:
        lyrics: lines of text; a line that begins with `[...]` is a structure tag.
        language: assumed for lines whose own language is unclear; by default the language of most other lines.
        vocabulary: see `load_vocabulary`; by default songmill's own small one.
    """
    vocabulary = vocabulary or _built_in()
    ids = [START_ID]
    for line in _spell(lyrics, language, compat=is_released(vocabulary)):
        ids += [*vocabulary.encode(line).ids, LINE_END_ID] if line else [LINE_END_ID]
    return ids


def is_released(vocabulary: Tokenizer) -> bool:
    """Whether a vocabulary is the released one, whose text cleaning has to be reproduced, mistakes included."""
    return vocabulary.get_vocab_size() == _RELEASED_SIZE


@cache
def _built_in() -> Tokenizer:
    return load_vocabulary()


def load_vocabulary(path: Path = BUILT_IN) -> Tokenizer:
    """Load a vocabulary file of the `tokenizers` library in the released id layout.

    Raises:
        ValueError: its start or space token does not have the id that the model expects.
    """
    vocabulary = Tokenizer.from_file(str(path))
    if vocabulary.token_to_id("[START]") != START_ID or vocabulary.token_to_id(SPACE) != LINE_END_ID:
        raise ValueError(f"{path.name} is not a lyric vocabulary: [START] must be {START_ID} and [SPACE] {LINE_END_ID}")
    return vocabulary


class LyricTokensParams(base.Params):
    """How lyrics are written down.

    Attributes:
        vocabulary: a vocabulary file, e.g. the released one; by default songmill's own small one.
        variant: with or without structure tags, line by line or as running text; see `stages.text.variants`.
    """

    vocabulary: Path | None = None
    variant: Literal["drawn"] | Variant = "drawn"


class LyricTokens(base.Stage):
    """Tokens of the lyrics that are sung.

    The lyrics come from the `lyrics` column (aligned lines, or the transcript where nothing matched). In a DAG without
    that column they are those that came with the song, else the transcript.
    """

    name = "lyric_tokens"
    type = columns.LYRIC_TOKENS
    reads = {"transcript": pa.struct([columns.TRANSCRIPT.field(name) for name in ("text", "language", "segments")])}
    reads_if_present = {
        "lyrics": pa.struct([columns.LYRICS.field("lines")]),
        "given_lyrics": pa.string(),
        "vocals": pa.struct([columns.VOCALS.field("has_vocals")]),
        "sections": pa.struct([columns.SECTIONS.field("items")]),
        "row_id": pa.string(),
    }
    revision = 2

    Params = LyricTokensParams

    @property
    def files(self) -> tuple[Path, ...]:
        """The user's vocabulary, if any."""
        return (self.params.vocabulary,) if self.params.vocabulary else ()

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the vocabulary."""
        super().setup(weights)
        path = self.params.vocabulary or BUILT_IN
        self._vocabulary = load_vocabulary(path)
        self._vocabulary_name = f"{path.stem}@{file_digest(path)[:8]}"

    def process(self, track: Mapping[str, Any]) -> dict[str, Any]:
        """Ids, the cleaned lines they stand for, the vocabulary's name and the variant."""
        wanted = drawn(track.get("row_id") or "") if self.params.variant == "drawn" else self.params.variant
        lines, variant = arrange(_sung_lines(track), (track.get("sections") or {}).get("items") or (), wanted)
        lyrics = "\n".join(lines) or ("" if _has_vocals(track) else INSTRUMENTAL)
        language = (track["transcript"] or {}).get("language")
        spelt = _spell(lyrics, language, compat=is_released(self._vocabulary))
        return self.own(
            ids=encode(lyrics, language, self._vocabulary),
            text="\n".join(line.replace(SPACE, " ") for line in spelt),
            vocabulary=self._vocabulary_name,
            variant=variant if lines else None,
        )


def _spell(lyrics: str, language: str | None, *, compat: bool) -> list[str]:
    """Lines in the form that the vocabulary expects: `[en]neon[SPACE]lights`."""
    lines = [line.strip() for line in lyrics.split("\n")]
    sung = [line for line in lines if line and not _STRUCTURE.match(line)]
    languages = iter(line_languages(sung, language))
    return [line and _spell_line(line, "en" if _STRUCTURE.match(line) else next(languages), compat) for line in lines]


def _spell_line(line: str, language: str, compat: bool) -> str:
    tag = "zh-cn" if language == "zh" else language
    return f"[{tag}]{clean(line, language, compat=compat)}".replace(" ", SPACE)


def _sung_lines(track: Mapping[str, Any]) -> Sequence[Timed]:
    if lyrics := track.get("lyrics"):
        return [(line["text"], line["start_s"]) for line in lyrics["lines"] or () if line["verdict"] in SUNG]
    if given := parse(track.get("given_lyrics") or ""):
        return [(line.text, line.start_s) for line in given]
    segments = heard_segments(track["transcript"] or {})
    return [(segment["text"].strip(), segment["start_s"]) for segment in segments]


def _has_vocals(track: Mapping[str, Any]) -> bool:
    return bool((track.get("vocals") or {}).get("has_vocals"))
