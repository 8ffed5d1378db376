"""MinHash LSH over the IPA of a lyric library: which songs share passages with a piece of IPA.

Broder 1997; datasketch. Whole songs would not do: of a song a minute may be heard, and its Jaccard similarity with
the whole is low. So overlapping passages of a fixed length are indexed, and those of the query looked up.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

_SCHEME = "affine32"


@dataclass(frozen=True)
class Sketch:
    """How passages are cut and hashed; an index answers only queries that were sketched the same way.

    Attributes:
        shingle: phones a shingle.
        passage: phones a passage; each begins half a passage after the former.
        num_perm: permutations of a MinHash.
        rows: hash values a band; more make a hit rarer.
        seed: of the permutations.
    """

    shingle: int = 4
    passage: int = 160
    num_perm: int = 128
    rows: int = 2
    seed: int = 1

    def shingles(self, phones: str) -> set[bytes]:
        """All shingles of a text of phones, the whole text where it is shorter."""
        starts = range(max(1, len(phones) - self.shingle + 1))
        return {phones[start : start + self.shingle].encode() for start in starts}

    def passages(self, phones: str) -> Iterator[MinHash]:
        """MinHash of every passage of a text of phones."""
        step = self.passage // 2
        for start in range(0, max(1, len(phones) - step), step):
            sketch = MinHash(self.num_perm, seed=self.seed, scheme=_SCHEME)
            sketch.update_batch(sorted(self.shingles(phones[start : start + self.passage])))
            yield sketch


class LyricIndex:
    """Songs by the passages of their IPA, in memory."""

    def __init__(self, sketch: Sketch) -> None:
        self._sketch = sketch
        self._passages = MinHashLSH(num_perm=sketch.num_perm, params=(sketch.num_perm // sketch.rows, sketch.rows))
        self._shingles: dict[str, set[bytes]] = {}

    def add(self, song_id: str, phones: str) -> None:
        """Index a song's phones (no spaces) under an id that no other song has."""
        if not phones:
            return
        self._shingles[song_id] = self._sketch.shingles(phones)
        for number, passage in enumerate(self._sketch.passages(phones)):
            self._passages.insert((song_id, number), passage)

    def candidates(self, phones: str, most: int) -> list[str]:
        """At most `most` songs that share a passage with these phones, best containment of the query first."""
        if not phones:
            return []
        hits = {song for passage in self._sketch.passages(phones) for song, _ in self._passages.query(passage)}
        heard = self._sketch.shingles(phones)
        return sorted(hits, key=lambda song_id: (-len(heard & self._shingles[song_id]), song_id))[:most]
