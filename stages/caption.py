"""Captions in six styles, written by templates from the measured columns alone."""

from collections.abc import Sequence
from random import Random
from typing import Any

import pyarrow as pa

from schemas import columns
from stages.base import Stage, Track
from stages.captioning.facts import CaptionFacts, gather
from stages.captioning.vocal_delivery import vocal_delivery


class Caption(Stage):
    """The six caption styles of ACE-Step, section 3.1 of its report (arXiv 2506.00045), by templates.

    simplified is one phrase; expanded states every fact; descriptive tells how it sounds; synonyms says the same in
    other words (`stages/data/tag_classes.yaml`); use_cases says what it suits; analysis lists genre, instruments,
    tempo and mood. A column that is missing or null is not mentioned. The wording depends on `row_id` alone.
    `source` is "measured". `lyrical_rap_check` is described in `stages.captioning.vocal_delivery`.
    """

    name = "caption"
    type = columns.CAPTION
    reads = {"row_id": pa.string()}
    reads_if_present = {
        "audio": pa.struct([columns.AUDIO.field("duration_s")]),
        "rhythm": pa.struct([columns.RHYTHM.field("bpm"), columns.RHYTHM.field("time_signature")]),
        "key": pa.struct([columns.KEY.field(name) for name in ("tonic", "mode", "strength")]),
        "tags": pa.struct([columns.TAGS.field("names")]),
        "vocals": pa.struct([columns.VOCALS.field("has_vocals")]),
        "events": pa.struct([columns.EVENTS.field("live")]),
        "sections": pa.struct([columns.SECTIONS.field("items")]),
        "transcript": pa.struct([columns.TRANSCRIPT.field(name) for name in ("text", "language", "segments")]),
    }

    def process(self, track: Track) -> dict[str, Any]:
        """Write the captions of one row."""
        measured = {name: track.get(name) for name in self.reads_if_present}
        facts = gather(measured)
        return self.own(
            simplified=_simplified(facts),
            expanded=_expanded(facts, Random(f"{track['row_id']} expanded")),
            descriptive=_descriptive(facts, Random(f"{track['row_id']} descriptive")),
            synonyms=_descriptive(gather(measured, synonyms=True), Random(f"{track['row_id']} synonyms")),
            use_cases=_use_cases(facts, Random(f"{track['row_id']} use_cases")),
            analysis={
                "genre": ", ".join(facts.genres) or None,
                "instruments": list(facts.instruments),
                "tempo": f"{facts.tempo} ({facts.bpm} BPM)" if facts.bpm else None,
                "mood": ", ".join(facts.moods) or None,
            },
            lyrical_rap_check=vocal_delivery(measured),
            source="measured",
        )


def _simplified(facts: CaptionFacts) -> str:
    adjectives = [*_known(facts.tempo), *facts.moods[:1], *facts.genres[:1]]
    return _sentence(" ".join([*adjectives, _noun(facts)]), *_filled("with {}", _sounds(facts)))


def _expanded(facts: CaptionFacts, wording: Random) -> str:
    opening = wording.choice(("This is {}", "You hear {}", "Here is {}"))
    runs = wording.choice(("It runs at {} BPM", "The tempo is {} BPM"))
    lasts = wording.choice(("It lasts {} minutes.", "Its length is {} minutes."))
    return " ".join(
        [
            _sentence(opening.format(_song(facts)), *_filled("with {}", _sounds(facts))),
            *_filled("The lyrics are in {}.", facts.language),
            *_filled(runs + ", in {} time" * bool(facts.meter) + ".", facts.bpm, *_known(facts.meter)),
            *_filled("The key is {}.", facts.key),
            *_filled("Its parts are {}.", _listed(facts.parts)),
            *_filled(lasts, facts.length),
            *_filled("It was recorded live.", facts.live),
        ]
    )


def _descriptive(facts: CaptionFacts, wording: Random) -> str:
    carried = wording.choice(("built on {}", "shaped by {}", "led by {}"))
    pace = wording.choice(("moving at {} pace", "taken at {} tempo"))
    sings = wording.choice(("It features {}", "It has {}"))
    return " ".join(
        [
            _sentence(
                _song(facts),
                *_filled(carried, _listed(facts.instruments)),
                *_filled(pace, facts.tempo and _with_article(facts.tempo)),
                *_filled("in {}", facts.key),
                comma=True,
            ),
            *([_sentence(sings.format(*_vocals(facts)), *_filled("in {}", facts.language))] if facts.sung else []),
        ]
    )


def _use_cases(facts: CaptionFacts, wording: Random) -> str:
    """What the song suits, judged by tempo, vocals, genre and mood."""
    uses: list[str] = []
    if facts.bpm:
        uses.append(wording.choice(_PACE_USES[0 if facts.bpm < 90 else 1 if facts.bpm < 120 else 2]))
    if facts.sung is not None:
        uses.append(wording.choice(_SUNG_USES if facts.sung else _INSTRUMENTAL_USES))
    uses += [f"{genre} playlists" for genre in facts.genres[:1]]
    uses += [f"{mood} film scenes" for mood in facts.moods[:1]]
    return _sentence(wording.choice(("Suits {}", "Good for {}", "Works for {}")).format(_listed(uses) or "listening"))


_PACE_USES = (
    ("winding down", "reading", "late evenings"),
    ("driving", "cooking", "everyday listening"),
    ("workouts", "running", "getting started"),
)
_SUNG_USES = ("singing along", "karaoke", "radio")
_INSTRUMENTAL_USES = ("video backgrounds", "studying", "talking over")


def _noun(facts: CaptionFacts) -> str:
    return {True: "song", False: "instrumental", None: "track"}[facts.sung]


def _song(facts: CaptionFacts) -> str:
    """Article, moods, genres and noun: "a sad, mellow rock and pop song"."""
    adjectives = ", ".join(facts.moods)
    words = " ".join([*_known(adjectives), *_known(_listed(facts.genres)), _noun(facts)])
    return _with_article(words)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in _VOWELS else 'a'} {words}"


_VOWELS = "aeiouAEIOUR"  # R as in "an R&B song", the only word here with a capital R


def _vocals(facts: CaptionFacts) -> list[str]:
    return [facts.voice or "vocals"] if facts.sung else []


def _sounds(facts: CaptionFacts) -> str:
    return _listed([*facts.instruments, *_vocals(facts)])


def _known(word: str | None) -> list[str]:
    return [word] if word else []


def _filled(template: str, fact: Any, *more: Any) -> list[str]:
    """The template with its facts filled in, or nothing where the first one is unknown."""
    return [template.format(fact, *more)] if fact else []


def _listed(words: Sequence[str]) -> str:
    """The words as in "one, two and three"."""
    return " and ".join([*_known(", ".join(words[:-1])), *words[-1:]])


def _sentence(*pieces: str, comma: bool = False) -> str:
    text = (", " if comma else " ").join(pieces)
    return f"{text[0].upper()}{text[1:]}."
