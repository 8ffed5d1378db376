"""The diffusion transformer of ACE-Step v1 (technical report, arXiv 2506.00045)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.model.attention import CrossAttention, LinearAttention
from training.model.context import Condition, Context, KeyValue, SequenceInfo
from training.model.control import add_control
from training.model.lyric_encoder import LyricEncoder
from training.model.mix_ffn import MixFFN
from training.model.patch import FinalLayer, PatchEmbed
from training.model.repa import alignment_loss, projector
from training.model.rotary import rotary_table

_TIME_CHANNELS = 256
_EPS = 1e-6


@dataclass
class TransformerOutput(BaseOutput):
    """Output of `decode`.

    Attributes:
        sample: velocity [B, channels, bins, T].
        proj_losses: (name, scalar) of each REPA head, if targets were given.
        projections: (name, [B, T, feature dim]) of each REPA head, if requested.
    """

    sample: Tensor
    proj_losses: Sequence[tuple[str, Tensor]] = ()
    projections: Sequence[tuple[str, Tensor]] = ()


class TransformerBlock(nn.Module):
    """Linear attention, cross-attention, Mix-FFN; AdaLN-single (PixArt-alpha, arXiv 2310.00426, section 2.3)."""

    def __init__(self, dim: int, heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=_EPS, elementwise_affine=False)
        self.attn = LinearAttention(dim, heads)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm2 = nn.RMSNorm(dim, eps=_EPS, elementwise_affine=False)
        self.ff = MixFFN(dim, mlp_hidden)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        condition: Condition | KeyValue,
        around: SequenceInfo,
        query_scale: Tensor | None = None,
    ) -> Tensor:
        """Frames [B, T, D] to [B, T, D]; `modulation` [B, 6, D] encodes the time and is shared by all blocks."""
        table = self.scale_shift_table + modulation
        shift, scale, gate, ff_shift, ff_scale, ff_gate = table.chunk(6, 1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, around, query_scale)
        memory = condition if isinstance(condition, KeyValue) else self.cross_attn.project(condition)
        x = x + self.cross_attn(x, memory, around, query_scale)
        return x + ff_gate * self.ff(self.norm2(x) * (1 + ff_scale) + ff_shift, around.mixing_mask)


class ACEStepTransformer2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """The linear diffusion transformer of ACE-Step v1, 3.3 B parameters in the released config.

    `encode` turns the conditions into tokens and `decode` computes the velocity of latents under them; `forward` does
    both, for training. For a sampler, which needs the velocity many times under the same condition, there are
    `prepare`, called once, and `velocity`, called at every step.

    In a padded batch, each item gets the same result as alone: the patch embedding's group norm, the Mix-FFN's
    convolution, the control input's statistics and the REPA heads exclude padded frames, and condition tokens count
    their positions without the padding between text and lyrics. The reference does none of this, so that there an item
    depends on how far its batch is padded. `compat=True` computes what the reference does; it is an argument rather
    than a config key since the weights are the same. Without padding the two agree. Frames are padded at the end, and
    `sample` is undefined on padded frames in both.

    diffusers' group offloading works at `leaf_level`; its `block_level` supports only `forward`.
    """

    _repeated_blocks = ["TransformerBlock"]  # for `compile_repeated_blocks`

    @register_to_config
    def __init__(
        self,
        in_channels: int = 8,
        num_layers: int = 24,
        inner_dim: int = 2560,
        attention_head_dim: int = 128,
        num_attention_heads: int = 20,
        mlp_ratio: float = 2.5,
        out_channels: int = 8,
        max_position: int = 32768,  # noqa: ARG002  positions are computed, not looked up: nothing bounds them
        rope_theta: float = 1_000_000.0,
        speaker_embedding_dim: int = 512,
        text_embedding_dim: int = 768,
        ssl_encoder_depths: Sequence[int] = (8, 8),
        ssl_names: Sequence[str] = ("mert", "m-hubert"),
        ssl_latent_dims: Sequence[int] = (1024, 768),
        patch_size: Sequence[int] = (16, 1),
        max_height: int = 16,
        max_width: int = 32768,  # noqa: ARG002
        lyric_encoder_vocab_size: int = 6693,
        lyric_hidden_size: int = 1024,
    ) -> None:
        """The released config's keys; `max_position` and `max_width` have no effect.

        Args:
            in_channels: channels of the latents.
            num_layers: number of blocks.
            inner_dim: D, `num_attention_heads` times `attention_head_dim`.
            attention_head_dim: channels of a head, even.
            num_attention_heads: heads of both attentions.
            mlp_ratio: ratio of the Mix-FFN's gated width to D.
            out_channels: channels of the velocity.
            max_position: length of the released rotary table.
            rope_theta: base of the rotary frequencies.
            speaker_embedding_dim: width of `speaker_embeds`.
            text_embedding_dim: width of the text encoder's states.
            ssl_encoder_depths: index of the block whose output each REPA head reads.
            ssl_names: names of the REPA heads.
            ssl_latent_dims: widths of the REPA heads' targets.
            patch_size: latent bins and frames of a patch, (`max_height`, 1).
            max_height: bins of the latents.
            max_width: frames of the released model's longest song.
            lyric_encoder_vocab_size: size of the lyric vocabulary.
            lyric_hidden_size: width of the lyric encoder.

        Raises:
            ValueError: these sizes do not fit together.
        """
        super().__init__()
        if inner_dim != num_attention_heads * attention_head_dim:
            raise ValueError(f"inner_dim is {inner_dim}, not {num_attention_heads} heads x {attention_head_dim}")
        if tuple(patch_size) != (max_height, 1):
            raise ValueError(f"a patch must be one frame of all {max_height} bins, not {tuple(patch_size)}")
        if any(depth >= num_layers for depth in ssl_encoder_depths):
            raise ValueError(f"a REPA head cannot read after block {max(ssl_encoder_depths)} of {num_layers}")
        patch = (max_height, 1)
        self.head_dim = attention_head_dim
        self.rope_theta = rope_theta
        self.gradient_checkpointing = False  # recompute each block's activations in the backward pass
        self.ssl_names = ssl_names
        self.ssl_depths = ssl_encoder_depths

        self.speaker_embedder = nn.Linear(speaker_embedding_dim, inner_dim)
        self.genre_embedder = nn.Linear(text_embedding_dim, inner_dim)
        self.lyric_embs = nn.Embedding(lyric_encoder_vocab_size, lyric_hidden_size)
        self.lyric_encoder = LyricEncoder(lyric_hidden_size)
        self.lyric_proj = nn.Linear(lyric_hidden_size, inner_dim)

        self.time_proj = Timesteps(_TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(_TIME_CHANNELS, inner_dim)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(inner_dim, 6 * inner_dim))

        self.proj_in = PatchEmbed(in_channels, patch, inner_dim)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(inner_dim, num_attention_heads, int(inner_dim * mlp_ratio)) for _ in range(num_layers)
        )
        self.projectors = nn.ModuleList(projector(inner_dim, dim) for dim in ssl_latent_dims)
        self.final_layer = FinalLayer(inner_dim, patch, out_channels)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        encoder_text_hidden_states: Tensor,
        text_attention_mask: Tensor,
        speaker_embeds: Tensor,
        lyric_token_idx: Tensor,
        lyric_mask: Tensor,
        timestep: Tensor,
        ssl_hidden_states: Sequence[Sequence[Tensor]] | None = None,
        *,
        return_projections: bool = False,
        compat: bool = False,
    ) -> TransformerOutput:
        """`encode`, then `decode`; see there for the arguments."""
        states, mask = self.encode(
            encoder_text_hidden_states, text_attention_mask, speaker_embeds, lyric_token_idx, lyric_mask
        )
        return self.decode(
            hidden_states,
            attention_mask,
            states,
            mask,
            timestep,
            ssl_hidden_states,
            return_projections=return_projections,
            compat=compat,
        )

    def encode(
        self,
        encoder_text_hidden_states: Tensor,
        text_attention_mask: Tensor,
        speaker_embeds: Tensor,
        lyric_token_idx: Tensor,
        lyric_mask: Tensor,
        *,
        lyric_query_scale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Turn the conditions into tokens: speaker, text and lyrics, in this order.

        Args:
            encoder_text_hidden_states: the text encoder's states [B, Lt, text dim].
            text_attention_mask: [B, Lt], 0 on padding.
            speaker_embeds: [B, speaker dim], zeros for no particular voice.
            lyric_token_idx: integers [B, Ll].
            lyric_mask: [B, Ll], 0 on padding.
            lyric_query_scale: [lyric layers, B], weakens the lyric encoder's queries (entropy-rectifying guidance).

        Returns:
            States [B, 1 + Lt + Ll, D] and their mask, in the text mask's dtype.
        """
        speaker = self.speaker_embedder(speaker_embeds)[:, None]
        text = self.genre_embedder(encoder_text_hidden_states)
        lyrics = self.lyric_encoder(self.lyric_embs(lyric_token_idx), lyric_mask.bool(), lyric_query_scale)
        speaker_mask = text_attention_mask.new_ones(len(text_attention_mask), 1)
        mask = torch.cat([speaker_mask, text_attention_mask, lyric_mask.to(speaker_mask.dtype)], 1)
        return torch.cat([speaker, text, self.lyric_proj(lyrics)], 1), mask

    def decode(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_mask: Tensor,
        timestep: Tensor,
        ssl_hidden_states: Sequence[Sequence[Tensor]] | None = None,
        output_length: int = 0,
        block_controlnet_hidden_states: Tensor | None = None,
        controlnet_scale: float = 1.0,
        *,
        query_scale: Tensor | None = None,
        return_projections: bool = False,
        compat: bool = False,
    ) -> TransformerOutput:
        """The velocity of noisy latents.

        Args:
            hidden_states: latents [B, channels, bins, T].
            attention_mask: [B, T], 0 on padding.
            encoder_hidden_states: condition tokens [B, L, D] of `encode`.
            encoder_hidden_mask: [B, L] of `encode`.
            timestep: [B], from 0 (clean) to 1000 (noise).
            ssl_hidden_states: per REPA head and item the target features [frames, feature dim].
            output_length: frames of `sample`, cut or filled with zeros; 0 for T.
            block_controlnet_hidden_states: control input [B, T, D].
            controlnet_scale: of the control input.
            query_scale: [num_layers, B], weakens both attentions' queries (entropy-rectifying guidance).
            return_projections: whether to return the REPA heads' projections.
            compat: let padding leak between frames, as the reference does.
        """
        around, condition = self._surround(attention_mask, encoder_hidden_states, encoder_hidden_mask, compat)
        x = self._embed(hidden_states, around, block_controlnet_hidden_states, controlnet_scale)
        x, time, reads = self._blocks(x, timestep, [condition] * len(self.transformer_blocks), around, query_scale)
        sample = self.final_layer(x, time)
        if output_length:
            sample = F.pad(sample, (0, output_length - sample.shape[-1]))
        if ssl_hidden_states is None and not return_projections:
            return TransformerOutput(sample)
        heads = zip(self.ssl_names, self.projectors, self.ssl_depths, strict=True)
        projections = [(name, head(reads[depth])) for name, head, depth in heads]
        if ssl_hidden_states is None:
            return TransformerOutput(sample, projections=projections)
        losses = [
            (name, alignment_loss(projected, targets, around.mixing_mask))
            for (name, projected), targets in zip(projections, ssl_hidden_states, strict=True)
        ]
        return TransformerOutput(sample, losses, projections if return_projections else ())

    def prepare(
        self,
        attention_mask: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_mask: Tensor,
        *,
        compat: bool = False,
    ) -> Context:
        """Compute all that does not change from step to step, for `velocity`; the arguments are those of `decode`.

        The result holds keys and values: prepare again after loading or scaling an adapter.
        """
        around, condition = self._surround(attention_mask, encoder_hidden_states, encoder_hidden_mask, compat)
        key_values = [cast(TransformerBlock, block).cross_attn.project(condition) for block in self.transformer_blocks]
        return Context(around.without_needless_masks(), key_values)

    def velocity(
        self, hidden_states: Tensor, timestep: Tensor, context: Context, *, query_scale: Tensor | None = None
    ) -> Tensor:
        """The `sample` that `decode` would compute, [B, channels, bins, T], given a prepared context."""
        x = self._embed(hidden_states, context.around)
        x, time, _ = self._blocks(x, timestep, context.key_values, context.around, query_scale)
        return self.final_layer(x, time)

    def _surround(
        self, attention_mask: Tensor, condition: Tensor, encoder_hidden_mask: Tensor, compat: bool
    ) -> tuple[SequenceInfo, Condition]:
        frame_mask, condition_mask = attention_mask.bool(), encoder_hidden_mask.bool()
        frames = torch.arange(frame_mask.shape[1], device=frame_mask.device)[None]
        if compat:
            tokens = torch.arange(condition_mask.shape[1], device=condition_mask.device)[None]
        else:
            tokens = (condition_mask.cumsum(-1) - 1).clamp(min=0)
        rotary, condition_rotary = (rotary_table(at, self.head_dim, self.rope_theta) for at in (frames, tokens))
        around = SequenceInfo.of(frame_mask, condition_mask, rotary, compat=compat)
        return around, Condition(condition, condition_rotary)

    def _embed(
        self, latents: Tensor, around: SequenceInfo, control: Tensor | None = None, control_scale: float = 1.0
    ) -> Tensor:
        x = self.proj_in(latents, around.mixing_mask)
        return x if control is None else add_control(x, control, control_scale, around.mixing_mask)

    def _blocks(
        self,
        x: Tensor,
        timestep: Tensor,
        conditions: Sequence[Condition | KeyValue],
        around: SequenceInfo,
        query_scale: Tensor | None,
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """Frames after the last block [B, T, D], the time embedding [B, D], and frames where the REPA heads read."""
        time = self.timestep_embedder(self.time_proj(timestep).to(x.dtype))
        modulation = self.t_block(time).unflatten(-1, (6, -1))
        reads = {}
        for index, (block, condition) in enumerate(zip(self.transformer_blocks, conditions, strict=True)):
            weak = None if query_scale is None else query_scale[index]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, modulation, condition, around, weak, use_reentrant=False)
            else:
                x = block(x, modulation, condition, around, weak)
            if index in self.ssl_depths:
                reads[index] = x
        return x, time, reads
