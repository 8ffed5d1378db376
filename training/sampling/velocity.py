"""The guided velocity that solvers follow."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.model import ACEStepTransformer2DModel
from training.model.context import Context
from training.sampling.conditions import Conditions
from training.sampling.guidance import Interval, SingleGuidance, doubly_guided
from training.sampling.options import SamplingOptions
from training.sampling.schedules import TRAIN_STEPS

_TAU = 0.01  # factor by which entropy-rectifying guidance scales queries
_WEAK_LYRIC_LAYERS = slice(4, 6)
_WEAK_BLOCKS = slice(15, 20)


@dataclass(frozen=True)
class Branch:
    """One set of condition tokens for the transformer.

    Attributes:
        states: condition tokens [B, L, D].
        mask: [B, L], 0 on padding.
        weakened: whether the transformer's middle blocks use weakened queries.
    """

    states: Tensor
    mask: Tensor
    weakened: bool = False


class Branches:
    """Encodes the conditional, text-only, unconditional and empty branches of a batch of songs.

    Args:
        transformer: the model.
        conditions: the songs' conditions, on the model's device.
        options: which parts entropy-rectifying guidance (ERG) weakens.
    """

    def __init__(
        self, transformer: ACEStepTransformer2DModel, conditions: Conditions, options: SamplingOptions
    ) -> None:
        self._transformer = transformer
        self._conditions = conditions
        self._options = options

    def conditional(self) -> Branch:
        """All conditions."""
        given = self._conditions
        return self._encode(given.text, given.speaker, given.lyrics, given.lyric_mask)

    def text_only(self) -> Branch:
        """Only the text; with lyric ERG, the lyrics are weakened instead of removed."""
        return self._without_lyrics(self._conditions.text)

    def unconditional(self) -> Branch:
        """No conditions; with ERG, weakened ones."""
        given = self._conditions
        weakened = given.text_null if self._options.use_erg_tag else None
        text = torch.zeros_like(given.text) if weakened is None else weakened
        return self._without_lyrics(text, weak_blocks=self._options.use_erg_diffusion)

    def empty(self) -> Branch:
        """No conditions and all lyrics masked: what edits are guided against."""
        given = self._conditions
        return self._encode(
            torch.zeros_like(given.text),
            torch.zeros_like(given.speaker),
            torch.zeros_like(given.lyrics),
            torch.zeros_like(given.lyric_mask),
        )

    def _without_lyrics(self, text: Tensor, weak_blocks: bool = False) -> Branch:
        given, weak_lyrics = self._conditions, self._options.use_erg_lyric
        return self._encode(
            text,
            torch.zeros_like(given.speaker),
            given.lyrics if weak_lyrics else torch.zeros_like(given.lyrics),
            given.lyric_mask,
            weak_lyrics,
            weak_blocks,
        )

    def _encode(
        self,
        text: Tensor,
        speaker: Tensor,
        lyrics: Tensor,
        lyric_mask: Tensor,
        weak_lyrics: bool = False,
        weak_blocks: bool = False,
    ) -> Branch:
        states, mask = self._transformer.encode(
            text,
            self._conditions.text_mask,
            speaker,
            lyrics,
            lyric_mask,
            lyric_query_scale=self._weak_lyric_layers() if weak_lyrics else None,
        )
        return Branch(states, mask, weak_blocks)

    def _weak_lyric_layers(self) -> Tensor:
        layers = len(self._transformer.lyric_encoder.encoders)
        scales = self._conditions.text.new_ones(layers, self._conditions.batch_size)
        scales[_WEAK_LYRIC_LAYERS] = _TAU
        return scales


class BranchedVelocity:
    """The transformer's velocities under several branches, computed in one batch.

    Args:
        transformer: the model.
        branches: branches of one padded length; `first` computes the first one.
        frames: latent frames.
    """

    def __init__(self, transformer: ACEStepTransformer2DModel, branches: Sequence[Branch], frames: int) -> None:
        self._transformer = transformer
        self._branches = len(branches)
        states = torch.cat([branch.states for branch in branches])
        mask = torch.cat([branch.mask for branch in branches])
        self._all = transformer.prepare(mask.new_ones(len(states), frames), states, mask)
        self._first = self._all.select(slice(len(branches[0].states)))
        self._query_scale = self._weak_blocks(branches) if any(branch.weakened for branch in branches) else None

    def first(self, x: Tensor, sigma: float) -> Tensor:
        """The first branch's velocity, float32 [B, C, bins, T], of latents at a noise level."""
        return self._evaluate(x, sigma, self._first, None)

    def all(self, x: Tensor, sigma: float) -> Sequence[Tensor]:
        """Each branch's velocity, float32 [B, C, bins, T], of the same latents."""
        repeated = x.repeat(self._branches, 1, 1, 1)
        return self._evaluate(repeated, sigma, self._all, self._query_scale).chunk(self._branches)

    def _evaluate(self, x: Tensor, sigma: float, context: Context, query_scale: Tensor | None) -> Tensor:
        timestep = x.new_full((len(x),), TRAIN_STEPS * sigma)
        states = x.to(self._transformer.dtype)
        return self._transformer.velocity(states, timestep, context, query_scale=query_scale).float()

    def _weak_blocks(self, branches: Sequence[Branch]) -> Tensor:
        scales = branches[0].states.new_ones(self._transformer.config["num_layers"], len(branches), 1)
        weakened = [index for index, branch in enumerate(branches) if branch.weakened]
        scales[_WEAK_BLOCKS, weakened] = _TAU
        return scales.expand(-1, -1, len(branches[0].states)).flatten(1)


class GuidedVelocity:
    """The velocity for solvers: guided within the interval, only the conditional branch outside it.

    Args:
        transformer: the model.
        conditions: the songs' conditions, on the model's device and in its dtype.
        options: guidance and its interval.
        steps: steps of the run, which the interval is a share of.
        frames: latent frames.
    """

    def __init__(
        self,
        transformer: ACEStepTransformer2DModel,
        conditions: Conditions,
        options: SamplingOptions,
        steps: int,
        frames: int,
    ) -> None:
        self._options = options
        self._interval = Interval.of(options, steps)
        self._single = SingleGuidance(options.cfg_type, self._interval)
        encoded = Branches(transformer, conditions, options)
        branches = [encoded.conditional()]
        if options.doubly_guided:
            branches.append(encoded.text_only())
        if options.guided:
            branches.append(encoded.unconditional())
        self._velocities = BranchedVelocity(transformer, branches, frames)

    def __call__(self, x: Tensor, index: int, sigma: float) -> Tensor:
        """The velocity [B, C, bins, T] of latents at a noise level, in evaluation `index` of the run."""
        if not self._options.guided or index not in self._interval:
            return self._velocities.first(x, sigma)
        conditional, *others = self._velocities.all(x, sigma)
        if self._options.doubly_guided:
            scales = self._options.guidance_scale_text, self._options.guidance_scale_lyric
            return doubly_guided(conditional, others[0], others[1], *scales)
        return self._single(conditional, others[0], index)
