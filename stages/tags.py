"""Style tags: genre, instruments, mood, type of voice."""

import json
from collections.abc import Mapping
from typing import Any

from schemas import columns
from stages import base, pcm


class TagsParams(base.Params):
    """Which tags are kept.

    Attributes:
        min_score: least probability, averaged over the track.
        max_tags: how many tags are kept at most, the strongest first.
    """

    min_score: float = 0.1
    max_tags: int = 12

    def strongest(self, scores: Mapping[str, float]) -> dict[str, list[Any]]:
        """`names` and `scores` of the tags that are kept, in descending order of score."""
        ranked = sorted(scores.items(), key=lambda tag: (-tag[1], tag[0]))[: self.max_tags]
        kept = [(name, score) for name, score in ranked if score >= self.min_score]
        return {"names": [name for name, _ in kept], "scores": [score for _, score in kept]}


class Tags(base.Stage):
    """musicnn with two vocabularies: MagnaTagATune (instruments, tempo, voice) and Million Song (genre, mood, decade).

    The track is cut into patches of 3 s; a tag's score is its mean probability. A tag in both vocabularies gets the
    higher score. `names` are lower-case and sorted by descending `scores`.
    """

    name = "tags"
    type = columns.TAGS
    reads = {"pcm": pcm.PCM}
    revision = 2
    Params = TagsParams

    @property
    def models(self) -> tuple[str, ...]:
        """One network per vocabulary."""
        return ("musicnn-mtt", "musicnn-msd")

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load both taggers and their labels."""
        from stages.nets.musicnn import Musicnn  # here because torch takes seconds to import and planning does without

        super().setup(weights)
        self._taggers = []
        for name in self.models:
            labels = json.loads((weights[name].path / "labels.json").read_text(encoding="utf-8"))
            self._taggers.append((Musicnn.load(weights[name].path), [label.lower() for label in labels]))

    def process(self, track: base.Track) -> dict[str, Any]:
        """Tag the `pcm` column."""
        from stages.nets.musicnn import RATE_HZ, patches

        mel = patches(pcm.mono(track["pcm"], RATE_HZ))
        best: dict[str, float] = {}
        for tagger, labels in self._taggers:
            for label, score in zip(labels, tagger.mean_scores(mel), strict=True):
                best[label] = max(score, best.get(label, 0.0))
        return self.own(**self.params.strongest(best))
