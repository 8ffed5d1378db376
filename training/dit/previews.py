"""Preview songs sampled during training, always from the same prompts and seeds."""

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
    """Songs to sample during training.

    Attributes:
        prompts: one prompt per song.
        lyrics: one text for all songs, or one each; empty leaves the lyrics to the model.
        every: steps between previews.
        seed: noise seed of the first song; the others count up from it.
        options: sampling options.
        codec: folder with `music_dcae_f8c8/` and `music_vocoder/`; by default the starting checkpoint.
        text_encoder: text encoder's folder; by default that in the starting checkpoint.
        vocabulary: lyric vocabulary file; by default that in the starting checkpoint.
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
    """Samples songs from a transformer that is being trained. Prompts and lyrics are encoded once, here.

    Args:
        config: which songs to sample.
        transformer: the model in training.
        checkpoint: the checkpoint that training started from, if any.
        device: device to sample on.

    Raises:
        RunProblem: no codec or text encoder is known, or prompts and lyrics do not fit the model.
        CheckpointProblem: the codec or a companion file is damaged.
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
            raise RunProblem(f"sampling during training needs a folder: give it as --set {missing}=")
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
        """Sample one waveform per prompt, float32 [2, samples] at 48 kHz. The model's train/eval mode is restored."""
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
