"""Captions in six styles, written from the measured columns and from nothing else."""

from random import Random
from typing import Any

import pyarrow as pa

from schemas import columns
from stages.base import Params, Stage, Track
from stages.caption_facts import Facts, gather
from stages.vocal_delivery import vocal_delivery


class Caption(Stage):
    """The six caption styles of ACE-Step, section 3.1 of its report (arXiv 2506.00045), by templates.

    simplified is one phrase; expanded states every fact; descriptive tells how it sounds; synonyms says the same in
    other words (`stages/data/tag_classes.yaml`); use_cases says what it suits; analysis lists genre, instruments,
    tempo and mood. A column that is missing or null is not mentioned. Wording varies with `row_id` and with nothing
    else. `source` is "measured". `lyrical_rap_check` is described in `stages.vocal_delivery`.
    """

    name = "caption"
    type = columns.CAPTION
    reads = {"row_id": pa.string()}
    reads_if_present = {
        "audio": pa.struct([columns.AUDIO.field("duration_s")]),
        "rhythm": pa.struct([columns.RHYTHM.field("bpm"), columns.RHYTHM.field("time_signature")]),
        "key": columns.KEY,
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


def _simplified(facts: Facts) -> str:
    tempo = (facts.tempo,) if facts.tempo else ()
    with_ = _listed([*facts.instruments, *_vocals(facts)])
    return _sentence(" ".join([*tempo, *facts.moods[:1], *facts.genres[:1], _noun(facts)]), f"with {with_}" * bool(with_))


def _expanded(facts: Facts, wording: Random) -> str:
    heard = _listed([*facts.instruments, *_vocals(facts)])
    opening = wording.choice(("This is {}", "You hear {}", "Here is {}")).format(_article(_song(facts)))
    return " ".join(
        [
            _sentence(opening, f"with {heard}" * bool(heard)),
            *_told(facts.language, "The lyrics are in {}."),
            *_told(facts.bpm, wording.choice(("It runs at {} BPM", "The tempo is {} BPM")) + _in_meter(facts) + "."),
            *_told(facts.key, wording.choice(("It is in {}.", "The key is {}."))),
            *_told(_listed(facts.parts, "then") if len(facts.parts) > 1 else None, "Its parts are {}."),
            *_told(facts.length, wording.choice(("It lasts {} minutes.", "Its length is {} minutes."))),
            *_told(facts.live, "It was recorded live."),
        ]
    )


def _descriptive(facts: Facts, wording: Random) -> str:
    song = _song(facts)
    if facts.instruments:
        carried = wording.choice(("{} shaped by {}", "{} built on {}", "{} led by {}"))
        song = carried.format(song, _listed(facts.instruments))
    voice = _listed(_vocals(facts))
    language = f"in {facts.language}" if facts.language else ""
    pace = wording.choice(("moving at a {} pace", "at a {} tempo")).format(facts.tempo) if facts.tempo else ""
    key = f"in {facts.key}" if facts.key else ""
    return " ".join(
        [
            _sentence(_article(song), pace, key),
            *_told(voice, wording.choice(("The singing is by {}" if facts.voice else "There are {}", "It has {}")) + ".")[:1],
        ]
        if not language
        else [_sentence(_article(song), pace, key), _sentence(f"It has {voice}", language)]
    )
