"""Style tags in the vocabularies of Discogs and MTG-Jamendo: 400 styles, moods, themes, instruments."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas import columns
from stages import base, pcm
from stages.nets.discogs_effnet import PublishedNetwork, patches
from stages.nets.musicnn import RATE_HZ
from stages.tags import TagsParams

MODEL = "discogs-effnet"
_BATCH = 64  # patches
_DENIALS = ("non_", "not_")  # the other class of a yes-or-no classifier


class TagsDiscogsParams(TagsParams):
    """Which tags are kept, and which classifiers they come from.

    Attributes:
        heads: entries of the model store, classifiers on the network's embeddings, in addition to its own 400 styles.
    """

    heads: tuple[str, ...] = ("discogs-effnet-moodtheme", "discogs-effnet-instrument")


class TagsDiscogs(base.Stage):
    """Discogs-EffNet's styles and any of the classifiers published for its embeddings.

    A score is the mean probability over patches of 2 s, one a second. A style counts for its genre too:
    "Electronic---House" gives "house" and "electronic", and a genre has the score of its strongest style. `names` are
    lower-case and sorted by descending `scores`.

    Source: see `stages.nets.discogs_effnet`; classifiers of essentia.upf.edu/models.html.
    """

    name = "tags"
    type = columns.TAGS
    reads = {"pcm": pcm.PCM}
    Params = TagsDiscogsParams

    @property
    def models(self) -> tuple[str, ...]:
        """The network and its classifiers."""
        return (MODEL, *self.params.heads)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Open the network and the classifiers."""
        super().setup(weights)
        self._network = PublishedNetwork(weights[MODEL].path, self.device)
        self._heads = [PublishedNetwork(weights[name].path, self.device) for name in self.params.heads]

    def process(self, track: base.Track) -> dict[str, Any]:
        """Tag the `pcm` column."""
        mel = patches(pcm.mono(track["pcm"], RATE_HZ))
        batches = np.split(mel, range(_BATCH, len(mel), _BATCH))
        outputs = [self._network(batch, "predictions", "embeddings") for batch in batches]
        styles, embeddings = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
        scores = _tags(self._network.classes, styles)
        for head in self._heads:
            (predictions,) = head(embeddings, "predictions")
            for tag, score in _tags(head.classes, predictions).items():
                scores[tag] = max(score, scores.get(tag, 0.0))
        return self.own(**self.params.strongest(scores))


def _tags(classes: list[str], predictions: np.ndarray) -> dict[str, float]:
    """Mean probability of every tag in predictions [patches, classes]."""
    scores: dict[str, float] = {}
    for label, score in zip(classes, predictions.mean(0).tolist(), strict=True):
        if label.startswith(_DENIALS):
            continue
        for tag in label.lower().split("---"):
            scores[tag] = max(score, scores.get(tag, 0.0))
    return scores
