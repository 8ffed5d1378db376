"""What training minimises: flow matching on latents and representation alignment (ACE-Step, arXiv 2506.00045).

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
    """How songs are noised, which conditions are dropped, what the terms weigh. Defaults are the paper's.

    Attributes:
        timesteps: `logit_normal` prefers the middle of the way, `uniform` does not.
        weighting: of the denoising loss over noise levels; `min_snr` (arXiv 2303.09556) holds back the easy ones.
        min_snr_gamma: see `weighting`.
        text_dropout: share of songs without text.
        lyric_dropout: share of songs without lyrics.
        speaker_dropout: share of songs without the singer's embedding; 1 for fine-tuning.
        condition_dropout: share of songs without any condition.
        ssl_weights: of the alignment with each encoder; those not named weigh 1.
        late_ssl_weights: the same for the last `late_steps` steps of a run, over `ssl_weights`.
        late_steps: see there.
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
        """The weights of a step with so many to go, itself included; None is early."""
        if steps_left is None or steps_left > self.late_steps:
            return self.ssl_weights
        return self.ssl_weights | self.late_ssl_weights


@dataclass(frozen=True)
class Losses:
    """Scalars of a batch.

    Attributes:
        total: what the gradient is of.
        denoising: mean squared error of the latents.
        alignment: by encoder, 1 - cosine.
        per_song: denoising loss of each song [B], without gradient.
        sigmas: noise level of each song [B].
    """

    total: Tensor
    denoising: Tensor
    alignment: Mapping[str, Tensor]
    per_song: Tensor
    sigmas: Tensor

    def detached(self) -> "Losses":
        """The same numbers without what their gradients need."""
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
        """Noise the songs, drop some of their conditions, and compare what the transformer makes of them.

        All randomness is the generator's, a CPU one, so that a step can be repeated anywhere. `steps_left` decides
        which weights the alignments have.
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
        """The loss at given noise levels [B] and noise [B, C, bins, T]."""
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
        """Squared error [B], the mean over each song's own frames.

        The public trainer's counts padded frames as exact, and weighs a song by its share of frames besides.
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
    """Noise levels float32 [songs] of the training grid: a place in the schedule, shifted towards the noise."""
    if distribution == "uniform":
        place = torch.rand(songs, generator=generator)
    else:
        place = torch.randn(songs, generator=generator).sigmoid()
    return training_sigmas()[(TRAIN_STEPS * place).long().clamp(max=TRAIN_STEPS - 1)]


def training_sigmas() -> Tensor:
    """The noise levels of the training grid, float32 [1000], from noise to latents."""
    sigmas = torch.linspace(1, 1 / TRAIN_STEPS, TRAIN_STEPS, dtype=torch.float64)
    return (SHIFT * sigmas / (1 + (SHIFT - 1) * sigmas)).float()


def drop_conditions(batch: Batch, config: ObjectiveConfig, generator: torch.Generator) -> Batch:
    """The batch with some songs' conditions gone, each kind drawn by itself and all of them together.

    Text becomes zeros, its mask kept; lyrics lose ids and mask; speakers become zeros.
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
    """Mean over songs and latent frames of 1 - <projection, target>, the projection normalised, the target not.

    Targets are mean unit states under the latent frames: the loss is the mean cosine loss over the native states,
    the projection held over each frame.

    Args:
        projected: [B, T, dim].
        targets: each song's, [frames, dim].
        frame_mask: bool [B, T].
    """
    losses = []
    for song, target in enumerate(targets):
        own = F.normalize(projected[song][frame_mask[song]].float(), dim=-1)
        frames = min(len(own), len(target))  # the codec rounds a last, partial frame up
        losses.append(1 - (own[:frames] * target[:frames].float()).sum(-1).mean())
    return torch.stack(losses).mean()
