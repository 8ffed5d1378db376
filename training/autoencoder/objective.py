"""Losses of the autoencoder: reconstruction and adversarial."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.autoencoder.config import AdversarialConfig, ReconstructionConfig
from training.autoencoder.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
)


@dataclass(frozen=True)
class AutoencoderLosses:
    """Losses of a batch, all scalars.

    Attributes:
        total: the loss to backpropagate.
        parts: name -> part of the loss, for the log.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


def reconstruction_losses(made: Tensor, music: Tensor, config: ReconstructionConfig) -> AutoencoderLosses:
    """Weighted mean squared and absolute error between two spectrograms of one shape."""
    mse, l1 = F.mse_loss(made, music), F.l1_loss(made, music)
    return AutoencoderLosses(config.mse * mse + config.l1 * l1, {"mse": mse, "l1": l1})


class PatchGan:
    """Adversarial training: the losses of the autoencoder and of the discriminator.

    Args:
        discriminator: scores patches of spectrograms.
        config: weight and kind of the loss.
    """

    def __init__(self, discriminator: PatchDiscriminator, config: AdversarialConfig) -> None:
        self.discriminator = discriminator
        self._config = config

    def against(self, made: Tensor, reconstruction: AutoencoderLosses, last_layer: Tensor) -> AutoencoderLosses:
        """The autoencoder's losses including the adversarial one; the discriminator gets no gradient."""
        self.discriminator.requires_grad_(False)
        adversarial = adversarial_loss(self.discriminator(made), self._config.loss)
        weight = torch.as_tensor(self._config.weight, device=made.device)
        if self._config.adaptive:
            weight = weight * adaptive_weight(reconstruction.total, adversarial, last_layer)
        parts = {"adversarial": adversarial, "adversarial_weight": weight}
        return AutoencoderLosses(reconstruction.total + weight * adversarial, {**reconstruction.parts, **parts})

    def discriminate(self, made: Tensor, music: Tensor) -> Tensor:
        """The discriminator's loss; the autoencoder gets no gradient."""
        self.discriminator.requires_grad_(True)
        return discriminator_loss(self.discriminator(music), self.discriminator(made.detach()), self._config.loss)
