"""The training loss: flow matching on latents and representation alignment (ACE-Step, arXiv 2506.00045).

Flow matching after Lipman et al. (arXiv 2210.02747), timesteps after Esser et al. (arXiv 2403.03206), representation
alignment after Yu et al. (arXiv 2410.06940).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from stages.nets.codec.codec import LATENT_HZ
from training.data.batch import Batch
from training.model import ACEStepTransformer2DModel
from training.model.repa import alignment_loss

TRAIN_STEPS = 1000
SHIFT = 3.0


class ObjectiveConfig(BaseModel):
    """Noise levels, condition dropout and loss weights. Defaults are the paper's.

    Attributes:
        timesteps: distribution of noise levels; `logit_normal` favours the middle ones.
        weighting: weight of the denoising loss by noise level; `min_snr` (arXiv 2303.09556) limits that of easy ones.
        min_snr_gamma: largest weight with `min_snr`.
        text_dropout: share of songs whose text is dropped.
        lyric_dropout: share of songs whose lyrics are dropped.
        speaker_dropout: share of songs whose speaker embedding is dropped; 1 for fine-tuning.
        condition_dropout: share of songs that lose all conditions.
        ssl_weights: encoder -> weight of its alignment loss; 1 for encoders not listed.
        late_ssl_weights: overrides `ssl_weights` in the last `late_steps` steps of a run.
        late_steps: see `late_ssl_weights`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timesteps: Literal["logit_normal", "uniform"] = "logit_normal"
    weighting: Literal["none", "min_snr"] = "none"
    min_snr_gamma: float = Field(5.0, gt=0)
    text_dropout: float = Field(0.15, ge=0, le=1)
    lyric_dropout: float = Field(0.15, ge=0, le=1)
    speaker_dropout: float = Field(0.5, ge=0, le=1)
    condition_dropout: float = Field(0.15, ge=0, le=1)
    ssl_weights: dict[str, float] = Field(default_factory=dict)
    late_ssl_weights: dict[str, float] = Field(default_factory=dict)
    late_steps: int = Field(0, ge=0)

    def ssl_weights_with(self, steps_left: int | None) -> dict[str, float]:
        """Alignment weights with `steps_left` steps to go, this one included; None is before `late_steps`."""
        if steps_left is None or steps_left > self.late_steps:
            return self.ssl_weights
        return self.ssl_weights | self.late_ssl_weights


@dataclass(frozen=True)
class Losses:
    """Losses of a batch; scalars unless a shape is given.

    Attributes:
        total: the loss to backpropagate.
        denoising: mean squared error of the latents, weighted by noise level.
        alignment: encoder -> 1 - cosine.
        per_song: [B], unweighted denoising loss of each song, without gradient.
        sigmas: [B], noise level of each song.
    """

    total: Tensor
    denoising: Tensor
    alignment: Mapping[str, Tensor]
    per_song: Tensor
    sigmas: Tensor

    def detached(self) -> "Losses":
        """The same losses, detached from the graph."""
        alignment = {name: loss.detach() for name, loss in self.alignment.items()}
        return replace(self, total=self.total.detach(), denoising=self.denoising.detach(), alignment=alignment)


class Objective:
    """The loss of a transformer on batches.

    Args:
        config: see `ObjectiveConfig`.
        compat: compute as the public trainer does, where padding leaks (see the transformer).
    """

    def __init__(self, config: ObjectiveConfig | None = None, *, compat: bool = False) -> None:
        self.config = config or ObjectiveConfig()
        self._compat = compat

    def __call__(
        self,
        transformer: ACEStepTransformer2DModel,
        batch: Batch,
        generator: torch.Generator,
        steps_left: int | None = None,
    ) -> Losses:
        """Draw noise levels, noise and dropped conditions, and compute the loss.

        Args:
            transformer: the model, or its DDP wrapper.
            batch: songs, on the model's device.
            generator: CPU generator that everything is drawn from, so that a step can be repeated on any device.
            steps_left: see `ObjectiveConfig.ssl_weights_with`.

        Raises:
            ValueError: the transformer has no REPA head for an encoder of the batch.
        """
        songs = len(batch.latents)
        sigmas = draw_sigmas(songs, self.config.timesteps, generator)
        noise = torch.randn(batch.latents.shape, generator=generator)
        dropped = drop_conditions(batch, self.config, generator)
        return self.at(transformer, dropped, sigmas, noise, steps_left)

    def at(
        self,
        transformer: ACEStepTransformer2DModel,
        batch: Batch,
        sigmas: Tensor,
        noise: Tensor,
        steps_left: int | None = None,
    ) -> Losses:
        """The loss at given noise levels [B] and noise [B, C, bins, T]; see `__call__` for the rest."""
        clean, device = batch.latents, batch.latents.device
        sigmas, noise = sigmas.to(device), noise.to(device)
        level = sigmas[:, None, None, None]
        noised = level * noise + (1 - level) * clean
        output = transformer(
            noised,
            batch.frame_mask,
            batch.text,
            batch.text_mask,
            batch.speaker,
            batch.lyrics,
            batch.lyric_mask,
            TRAIN_STEPS * sigmas,
            return_projections=bool(batch.ssl),
            compat=self._compat,
        )
        estimate = noised - level * output.sample.float()
        per_song = self._per_song(estimate, batch)
        denoising = (per_song * self._weights(sigmas)).mean()
        alignment = self._alignment(dict(output.projections), batch)
        total = denoising
        if alignment:
            weights = self.config.ssl_weights_with(steps_left)
            weighted = [loss * weights.get(name, 1.0) for name, loss in alignment.items()]
            total = total + torch.stack(weighted).mean()
        return Losses(total, denoising, alignment, per_song.detach(), sigmas)

    def _weights(self, sigmas: Tensor) -> Tensor:
        if self.config.weighting == "none":
            return torch.ones_like(sigmas)
        signal_to_noise = ((1 - sigmas) / sigmas).square()
        return signal_to_noise.clamp(max=self.config.min_snr_gamma)

    def _per_song(self, estimate: Tensor, batch: Batch) -> Tensor:
        """Mean squared error [B] over each song's own frames.

        The public trainer counts padded frames as exact, and also weights a song by its share of frames.
        """
        mask = batch.frame_mask
        squared = (estimate - batch.latents).square().mean((1, 2)) * mask
        if self._compat:
            return squared.mean(1) * mask.float().mean(1)
        return squared.sum(1) / mask.sum(1)

    def _alignment(self, projections: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        missing = batch.ssl.keys() - projections.keys()
        if missing:
            raise ValueError(f"the transformer has no REPA head for {', '.join(sorted(missing))}: see its ssl_names")
        mask = None if self._compat else batch.frame_mask
        return {
            name: pooled_alignment_loss(projections[name], targets, batch.frame_mask)
            if math.isclose(batch.ssl_rate_hz[name], LATENT_HZ, rel_tol=1e-3)
            else alignment_loss(projections[name], targets, mask)
            for name, targets in batch.ssl.items()
        }


def draw_sigmas(songs: int, distribution: Literal["logit_normal", "uniform"], generator: torch.Generator) -> Tensor:
    """Noise levels of the training grid, float32 [songs], drawn by their place in the shifted schedule."""
    if distribution == "uniform":
        place = torch.rand(songs, generator=generator)
    else:
        place = torch.randn(songs, generator=generator).sigmoid()
    return training_sigmas()[(TRAIN_STEPS * place).long().clamp(max=TRAIN_STEPS - 1)]


def training_sigmas() -> Tensor:
    """The noise levels of the training grid, float32 [1000], from noise (1) to latents."""
    sigmas = torch.linspace(1, 1 / TRAIN_STEPS, TRAIN_STEPS, dtype=torch.float64)
    return (SHIFT * sigmas / (1 + (SHIFT - 1) * sigmas)).float()


def drop_conditions(batch: Batch, config: ObjectiveConfig, generator: torch.Generator) -> Batch:
    """Drop conditions of some songs: each kind independently, and all of them together for `condition_dropout`.

    Text is zeroed and keeps its mask; lyrics lose their ids and mask; speaker embeddings are zeroed.
    """
    songs = len(batch.latents)
    everything = torch.rand(songs, generator=generator) < config.condition_dropout
    text, lyrics, speaker = (
        ((torch.rand(songs, generator=generator) < share) | everything).to(batch.latents.device)
        for share in (config.text_dropout, config.lyric_dropout, config.speaker_dropout)
    )
    return replace(
        batch,
        text=batch.text.masked_fill(text[:, None, None], 0),
        lyrics=batch.lyrics.masked_fill(lyrics[:, None], 0),
        lyric_mask=batch.lyric_mask & ~lyrics[:, None],
        speaker=batch.speaker.masked_fill(speaker[:, None], 0),
    )


def pooled_alignment_loss(projected: Tensor, targets: Sequence[Tensor], frame_mask: Tensor) -> Tensor:
    """Alignment loss for targets pooled to the latent rate, a float32 scalar.

    The mean over songs and frames of 1 - <projection, target>; the projection is normalised, the target is not. Since
    a target is the mean of the unit-norm states within its frame, this equals the mean cosine loss over the encoder's
    own states with the projection repeated within each frame.

    Args:
        projected: [B, T, dim].
        targets: one [frames, dim] per song.
        frame_mask: bool [B, T].
    """
    losses = []
    for song, target in enumerate(targets):
        own = F.normalize(projected[song][frame_mask[song]].float(), dim=-1)
        frames = min(len(own), len(target))  # the codec rounds a last, partial frame up
        losses.append(1 - (own[:frames] * target[:frames].float()).sum(-1).mean())
    return torch.stack(losses).mean()
