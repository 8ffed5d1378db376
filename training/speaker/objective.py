"""Losses of the speaker encoder: classification over all singers, contrast within the batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.speaker.config import SpeakerObjectiveConfig


@dataclass(frozen=True)
class SpeakerLosses:
    """Losses of one batch, all scalars.

    Attributes:
        total: weighted sum of the two losses, to backpropagate.
        classification: additive-margin softmax.
        verification: supervised contrastive.
        accuracy: share of voices whose nearest class is their own.
    """

    total: Tensor
    classification: Tensor
    verification: Tensor
    accuracy: Tensor


class SpeakerClassifier(nn.Module):
    """The encoder with a learnt direction for each singer, which only training needs.

    Args:
        encoder: maps log-mel bands [N, n_mels, frames] to unit embeddings [N, dim].
        dim: width of the embeddings.
        singers: number of singers to classify.
    """

    def __init__(self, encoder: Callable[[Tensor], Tensor], dim: int, singers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.singers = nn.Parameter(F.normalize(torch.randn(singers, dim), dim=1))

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel bands [N, n_mels, frames] to embeddings [N, dim] and their cosines to the singers [N, singers]."""
        embeddings = self.encoder(log_mel).float()
        return embeddings, embeddings @ F.normalize(self.singers, dim=1).T


def speaker_losses(
    embeddings: Tensor, cosines: Tensor, singers: Tensor, config: SpeakerObjectiveConfig
) -> SpeakerLosses:
    """Both losses of a batch.

    Args:
        embeddings: [N, dim], unit length.
        cosines: [N, classes], to the classes.
        singers: int64 [N], class of each.
        config: weights and margins.
    """
    classification = additive_margin_softmax(cosines, singers, config.margin, config.scale)
    verification = supervised_contrastive(embeddings, singers, config.temperature)
    return SpeakerLosses(
        config.classification * classification + config.verification * verification,
        classification,
        verification,
        (cosines.argmax(dim=1) == singers).float().mean(),
    )


def additive_margin_softmax(cosines: Tensor, classes: Tensor, margin: float, scale: float) -> Tensor:
    """Cross-entropy of scaled cosines, with a margin subtracted from that to the right class.

    Wang, Cheng, Liu, Liu, "Additive Margin Softmax for Face Verification" (2018), equation 6.
    """
    handicap = margin * F.one_hot(classes, cosines.shape[1])
    return F.cross_entropy(scale * (cosines - handicap), classes)


def supervised_contrastive(embeddings: Tensor, singers: Tensor, temperature: float) -> Tensor:
    """Mean over voices of the negative log-likelihood of the same singer's other voices among all other voices.

    Voices whose singer has no other in the batch are left out. Khosla et al., "Supervised Contrastive
    Learning" (2020), equation 2.
    """
    itself = torch.eye(len(singers), dtype=torch.bool, device=singers.device)
    same = (singers[:, None] == singers) & ~itself
    similarity = (embeddings @ embeddings.T / temperature).masked_fill(itself, -torch.inf)
    surprise = -similarity.log_softmax(dim=1).masked_fill(~same, 0.0).sum(dim=1)
    has_others = same.any(dim=1)
    return (surprise[has_others] / same.sum(dim=1)[has_others]).mean()
