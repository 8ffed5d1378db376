"""Which known song the transcribed words belong to, and its lyric lines with times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from schemas import columns
from stages import base
from stages.matching.alignment import Alignment, Word, align, heard_words
from stages.matching.index import SKETCHES
from stages.matching.library import MANIFEST, LyricLibrary, LyricSong
from stages.matching.line_report import matched_lines, transcript_lines
from stages.text.lyric_text import LyricLine, heard_segments

GIVEN = "given"  # song_id of lyrics that came with the song


@dataclass(frozen=True)
class Match:
    """A song and how its lines align with the transcribed words."""

    song: LyricSong
    alignment: Alignment


class LyricsParams(base.Params):
    """What is searched, and when a song counts as found.

    Attributes:
        library: folder made by `songmill lyrics index`, or, for up to some thousand songs, a Parquet file with the text
            columns id, title, artist, language, text, license and unique ids.
        index: how a Parquet library is indexed, "containment" or "lsh" (see `stages.matching.index`).
        candidates: how many songs are aligned at most.
        min_similarity: least similarity of a line's phones to the words it is placed on; below it the line is missing.
        canonical_similarity: least similarity at which a line's text is taken from the library instead of the
            transcript, and at which a line is placed once more where it is repeated.
        tie: songs that reach this share of the best one's score times coverage are alternatives.
        min_score: least mean similarity of the placed lines for the song to count as found.
        min_coverage: least share of the transcribed phones that its lines explain.
        min_phones: least number of those phones; "oh yeah" is in every song.
        max_lrc_shift_s: greatest median distance between an LRC's times and the transcribed ones at which the LRC's are
            kept.
    """

    library: Path | None = None
    index: Literal["containment", "lsh"] = "containment"
    candidates: int = Field(5, ge=1)
    min_similarity: float = Field(0.5, gt=0, le=1)
    canonical_similarity: float = Field(0.7, gt=0, le=1)
    tie: float = Field(0.95, gt=0, le=1)
    min_score: float = Field(0.55, ge=0, le=1)
    min_coverage: float = Field(0.35, ge=0, le=1)
    min_phones: int = Field(40, ge=1)
    max_lrc_shift_s: float = Field(1.5, ge=0)


class Lyrics(base.Stage):
    """Lyrics from a library or from the song's own tags, verified against the transcript by their phones.

    An index proposes songs of the library; an alignment of their lines decides. `lines` reports what was sung and what
    was not (see `stages.matching.line_report`); without a match it holds the transcript's segments. `alternatives` are
    songs that fit nearly as well: covers, live versions.
    """

    name = "lyrics"
    revision = 2
    type = columns.LYRICS
    reads = {
        "transcript": pa.struct([columns.TRANSCRIPT.field(name) for name in ("text", "language", "segments")]),
        "phonemes": pa.struct([columns.PHONEMES.field("lines")]),
    }
    reads_if_present = {"given_lyrics": pa.string(), "language": pa.string()}

    Params = LyricsParams

    @property
    def files(self) -> tuple[Path, ...]:
        """The lyric library, if any."""
        library = self.params.library
        if library is None:
            return ()
        return (library / MANIFEST if library.is_dir() else library,)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Open the index, or read the library and index the phones of its songs.

        Raises:
            stages.matching.library.LibraryError: it is not a lyric library, or another version built it.
        """
        super().setup(weights)
        library = self.params.library
        if library is None:
            self._library = LyricLibrary.of([])
        elif library.is_dir():
            self._library = LyricLibrary.open(library)
        else:
            self._library = LyricLibrary.read(library, SKETCHES[self.params.index]())

    def process(self, track: Mapping[str, Any]) -> dict[str, Any]:
        """Report the best song that passes the thresholds, else the transcript."""
        transcript = track["transcript"] or {}
        ipa = (track["phonemes"] or {}).get("lines") or ()
        segments = heard_segments(transcript)
        words = heard_words(segments, ipa)
        songs = [*self._given(track, transcript.get("language")), *self._candidates(words)]
        matches = [Match(song, align(song.phones, words, *self._least)) for song in songs]
        found = [match for match in matches if self._is_found(match.alignment)]
        if not found:
            return self.own(song_id=None, score=None, coverage=None, lines=transcript_lines(segments), alternatives=[])
        best = max(found, key=_fit)
        close = [match.song.id for match in found if match is not best and _fit(match) >= self.params.tie * _fit(best)]
        return self.own(
            song_id=best.song.id,
            score=best.alignment.score,
            coverage=best.alignment.coverage,
            lines=self._lines(best, words),
            alternatives=close,
        )

    @property
    def _least(self) -> tuple[float, float]:
        return self.params.min_similarity, self.params.canonical_similarity

    def _given(self, track: Mapping[str, Any], heard_language: str | None) -> list[LyricSong]:
        given = track.get("given_lyrics")
        return [LyricSong.read(GIVEN, given, track.get("language") or heard_language)] if given else []

    def _candidates(self, words: Sequence[Word]) -> list[LyricSong]:
        phones = "".join(word.phones for word in words)
        return [candidate.song for candidate in self._library.candidates(phones, self.params.candidates)]

    def _is_found(self, alignment: Alignment) -> bool:
        return (
            alignment.score >= self.params.min_score
            and alignment.coverage >= self.params.min_coverage
            and alignment.explained >= self.params.min_phones
        )

    def _lines(self, match: Match, words: Sequence[Word]) -> list[dict[str, Any]]:
        lines = matched_lines(match.song, match.alignment, words, self.params.canonical_similarity)
        turns = [
            (words[place.first].start_s, words[place.last - 1].end_s) if place else None
            for place in match.alignment.lines
        ]
        if starts := self._true_starts(match.song.lines, turns):
            times = [_lrc_time(*parts) for parts in zip(starts, [*starts[1:], None], turns, strict=True)]
            _set_times(lines, turns, times)
        return lines

    def _true_starts(
        self, lines: Sequence[LyricLine], heard: Sequence[tuple[float, float] | None]
    ) -> list[float] | None:
        """Where an LRC says that its lines begin, if it does for all of them and agrees with the transcript's times."""
        starts = [line.start_s for line in lines if line.start_s is not None]
        if len(starts) < len(lines):
            return None
        shifts = [abs(start_s - time[0]) for start_s, time in zip(starts, heard, strict=True) if time]
        return starts if median(shifts) <= self.params.max_lrc_shift_s else None


def _fit(match: Match) -> float:
    return match.alignment.score * match.alignment.coverage


def _lrc_time(start_s: float, next_s: float | None, heard: tuple[float, float] | None) -> tuple[float, float] | None:
    """A line ends where the transcript ends it, but no later than where the next one begins."""
    ends = [end_s for end_s in (next_s, heard[1] if heard else None) if end_s is not None and end_s > start_s]
    return (start_s, min(ends)) if ends else heard


def _set_times(
    lines: list[dict[str, Any]],
    turns: Sequence[tuple[float, float] | None],
    times: Sequence[tuple[float, float] | None],
) -> None:
    """Give lines that are sung in order, or missing, the LRC's times; their words keep the transcript's."""
    for line in lines:
        number = line["library_line"]
        if number is None or (line["start_s"] is not None and (line["start_s"], line["end_s"]) != turns[number]):
            continue
        line["start_s"], line["end_s"] = times[number] or (None, None)
