"""What a model sounds like on the way: songs from the same prompts and seeds, every so many steps."""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stages.lyric_tokens import load_vocabulary
from training.checkpoints.released_layout import companions, load_codec
from training.model import ACEStepTransformer2DModel
from training.run.run_folder import RunProblem
from training.sampling import Sampler, SamplingError, SamplingOptions
from training.sampling.prompts import load_text_encoder, make_conditions


class PreviewsConfig(BaseModel):
    """Songs to sample while training.

    Attributes:
        prompts: a description of each song.
        lyrics: one for all songs, or one each; empty leaves them open.
        every: steps.
        seed: of the first song's noise; the others' follow.
        options: of sampling.
        codec: folder with `music_dcae_f8c8/` and `music_vocoder/`; by default that of the checkpoint to start from.
        text_encoder: folder; by default the same.
        vocabulary: file of the lyric vocabulary; by default the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: tuple[str, ...] = Field(min_length=1)
    lyrics: tuple[str, ...] = ("",)
    every: int = Field(1000, ge=1)
    seed: int = 0
    options: SamplingOptions = SamplingOptions(duration=20.0)
    codec: Path | None = None
    text_encoder: Path | None = None
    vocabulary: Path | None = None


class Previews:
    """Songs of a transformer that is being trained. The prompts are encoded once, here.

    Args:
        config: which songs.
        transformer: the one that is trained.
        checkpoint: that training starts from.
        device: to sample on.

    Raises:
        RunProblem: there is no codec or text encoder, or prompts and lyrics do not fit.
        CheckpointProblem: one of them is damaged.
    """

    def __init__(
        self,
        config: PreviewsConfig,
        transformer: ACEStepTransformer2DModel,
        checkpoint: Path | None,
        device: torch.device,
    ) -> None:
        text_encoder, vocabulary = companions(checkpoint, transformer) if checkpoint else (None, None)
        text_encoder, vocabulary = config.text_encoder or text_encoder, config.vocabulary or vocabulary
        codec = config.codec or checkpoint
        if codec is None or text_encoder is None:
            missing = "samples.codec" if codec is None else "samples.text_encoder"
            raise RunProblem(f"to sample while training takes a folder as --set {missing}=")
        self._config, self._device = config, device
        self._codec = load_codec(codec)
        try:
            self._sampler = Sampler(transformer, device=device)
            self._conditions = make_conditions(
                config.prompts,
                config.lyrics,
                text_encoder=load_text_encoder(text_encoder),
                vocabulary=load_vocabulary(vocabulary) if vocabulary else None,
                speaker_dim=transformer.config["speaker_embedding_dim"],
                weakened_text=config.options.guided and config.options.use_erg_tag,
            )
        except SamplingError as problem:
            raise RunProblem(f"samples: {problem}") from problem

    @torch.no_grad()
    def __call__(self) -> list[Tensor]:
        """Waveforms float32 [2, samples] at 48 kHz, one a prompt. The model is in the mode that it was in again."""
        given, transformer = self._conditions, self._sampler.transformer
        training = transformer.training
        transformer.eval()
        try:
            latents = self._sampler.generate_latents(
                text=given.text,
                text_mask=given.text_mask,
                text_null=given.text_null,
                speaker=given.speaker,
                lyrics=given.lyrics,
                lyric_mask=given.lyric_mask,
                seeds=range(self._config.seed, self._config.seed + len(given.text)),
                **self._config.options.model_dump(),
            )
        finally:
            transformer.train(training)
        codec: nn.Module = self._codec.to(self._device)  # type: ignore[arg-type]  # diffusers' wrapper loses `self`
        waveforms = [self._codec.decode(song[None].to(self._device))[0].cpu() for song in latents]
        codec.to("cpu")  # training needs the memory
        return waveforms
