"""IPA of the transcript, line by line."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from schemas import columns
from stages import base
from stages.text.ipa import to_ipa
from stages.text.lyric_text import heard_segments


class Phonemes(base.Stage):
    """IPA of every transcript segment, without stress or length marks; none for instrumentals and empty transcripts."""

    name = "phonemes"
    type = columns.PHONEMES
    reads = {"transcript": pa.struct([columns.TRANSCRIPT.field(name) for name in ("text", "language", "segments")])}

    def process(self, track: Mapping[str, Any]) -> dict[str, Any]:
        """One line of IPA per segment, in the segments' order."""
        transcript = track["transcript"] or {}
        lines = [segment["text"] for segment in heard_segments(transcript)]
        return self.own(lines=to_ipa(lines, transcript.get("language")))
