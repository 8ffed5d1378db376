"""The sampler of ACE-Step models: generates songs from prompts and lyrics, or from another song."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from stages.lyric_tokens import load_vocabulary
from stages.nets.codec.codec import CODEC_HZ, LATENT_HZ, SAMPLES_PER_FRAME
from training.checkpoints.lora import Lora, load_loras
from training.checkpoints.released_layout import load_checkpoint
from training.model import ACEStepTransformer2DModel, MusicDCAE
from training.sampling.audio import read_audio
from training.sampling.conditions import Conditions
from training.sampling.errors import SamplingError
from training.sampling.flow_edit import edit
from training.sampling.generation import audio2audio, retake, text2music
from training.sampling.inputs import for_each, require_fit, require_inputs, seeds_of, several
from training.sampling.job import SamplingJob, Step
from training.sampling.options import SamplingOptions, Task
from training.sampling.prompts import TextEncoder, load_text_encoder, make_conditions
from training.sampling.repaint import extend, repaint
from training.sampling.window import frames_of

SAMPLE_RATE_HZ = 48_000

_TASKS: dict[Task, Callable[[SamplingJob], Tensor]] = {
    "text2music": text2music,
    "retake": retake,
    "repaint": repaint,
    "extend": extend,
    "edit": edit,
    "audio2audio": audio2audio,
}


@dataclass(frozen=True)
class Clip:
    """A finished song.

    Attributes:
        waveform: float32 [2, samples] at 48 kHz, on the CPU.
        latents: float32 [C, bins, frames], on the CPU.
        seed: seed of its noise.
        retake_seed: seed of its second noise, used by retake, repaint, extend and edit.
        seconds: time the whole batch took: `encode` (text, lyrics, source), `steps`, `decode`.
    """

    waveform: Tensor
    latents: Tensor
    seed: int
    retake_seed: int
    seconds: dict[str, float]


class Sampler:
    """A loaded model with everything needed to sample from it.

    Args:
        transformer: the diffusion transformer, on the device to sample on and in the dtype to compute in.
        codec: converts latents to waveforms and back; only `generate` needs it.
        text_encoder: the encoder that the transformer was trained with; only `generate` needs it.
        vocabulary: the transformer's lyric vocabulary; without it songs have no lyrics.
        device: device to compute on; by default the transformer's.
        offload: keep models in main memory while they are not in use.

    Raises:
        SamplingError: the text encoder or the vocabulary is not the transformer's.
    """

    # What a batch is sampled as; the tests substitute the reference implementation's behaviour here.
    _job: ClassVar[type[SamplingJob]] = SamplingJob

    def __init__(
        self,
        transformer: ACEStepTransformer2DModel,
        codec: MusicDCAE | None = None,
        text_encoder: TextEncoder | None = None,
        vocabulary: Tokenizer | None = None,
        *,
        device: torch.device | str | None = None,
        offload: bool = False,
    ) -> None:
        self.transformer = transformer.eval()
        self.codec = None if codec is None else codec.eval()
        self.text_encoder = text_encoder
        self.vocabulary = vocabulary
        self.device = torch.device(device or transformer.device)
        self._offload = offload
        self._require_fit()

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        text_encoder: Path | None = None,
        vocabulary: Path | None = None,
        loras: Sequence[Lora] = (),
        compile: bool = False,
        int8: bool = False,
        offload: bool = False,
    ) -> "Sampler":
        """Load a checkpoint in the released folder layout.

        Args:
            folder: see `training.checkpoints.released_layout`.
            device: device to compute on.
            dtype: dtype of the transformer; use bfloat16 on GPUs.
            text_encoder: folder of the text encoder; None takes the checkpoint's.
            vocabulary: file of the lyric vocabulary; None takes the checkpoint's, if any.
            loras: adapters to load.
            compile: compile the transformer's blocks; call `warm_up` to do so before the first song.
            int8: keep the transformer's weights in 8 bits.
            offload: keep models in main memory while they are not in use, for small cards.

        Raises:
            CheckpointProblem: the checkpoint or an adapter is damaged or does not fit.
            SamplingError: there is no text encoder, or int8 and LoRAs are combined.
        """
        if int8 and loras:
            raise SamplingError("int8 weights do not support LoRAs: leave one of the two out")
        checkpoint = load_checkpoint(Path(folder), dtype=dtype, device="cpu" if offload else device)
        encoder = text_encoder or checkpoint.text_encoder
        if encoder is None:
            raise SamplingError(f"{folder} has no text encoder (umt5-base/): name its folder with text_encoder")
        if torch.device(device).type == "cpu":
            checkpoint.codec.float()  # its convolutions in bfloat16 are slow on CPUs, and on some of them wrong
        load_loras(checkpoint.transformer, loras)
        if int8:
            from training.checkpoints.int8 import quantize

            quantize(checkpoint.transformer)
        if compile:
            checkpoint.transformer.compile_repeated_blocks(dynamic=True)
        words = vocabulary or checkpoint.vocabulary
        return cls(
            checkpoint.transformer,
            checkpoint.codec,
            load_text_encoder(encoder),
            _vocabulary(words) if words else None,
            device=device,
            offload=offload,
        )

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        lyrics: str | Sequence[str] = "",
        language: str | None = None,
        seeds: int | Sequence[int] | None = None,
        retake_seeds: int | Sequence[int] | None = None,
        speaker: Tensor | None = None,
        source: Path | str | None = None,
        target_prompt: str | Sequence[str] | None = None,
        target_lyrics: str | Sequence[str] | None = None,
        on_step: Callable[[Step], None] | None = None,
        **options: Any,
    ) -> list[Clip]:
        """Generate songs as waveforms, one per prompt. They are sampled in one batch, but do not affect each other.

        Args:
            prompt: what to generate; for an edit, a description of the source.
            lyrics: one text per prompt or one for all; empty leaves them to the model, `[inst]` asks for an
                instrumental.
            language: language of lyric lines whose own cannot be detected reliably.
            seeds: one per prompt, or the first of consecutive ones; None draws them at random. Clips report them.
            retake_seeds: the same for the second noise.
            speaker: embedding of the voice, [speaker dim] or [prompts, speaker dim].
            source: audio file, for tasks that start from a song.
            target_prompt: for an edit, a description of the result.
            target_lyrics: for an edit; None keeps those of the source.
            on_step: called after every step.
            **options: fields of `SamplingOptions`.

        Raises:
            SamplingError: the inputs cannot be sampled from.
            pydantic.ValidationError: an option is unknown or out of range.
        """
        chosen = SamplingOptions(**options)
        prompts, texts = several(prompt), several(lyrics)
        targets = None if target_prompt is None else several(target_prompt)
        require_inputs(chosen, source, targets)
        if self.codec is None or self.text_encoder is None:
            raise SamplingError("this sampler has no codec or no text encoder: load it with Sampler.from_pretrained")
        numbers = seeds_of(seeds, len(prompts)), seeds_of(retake_seeds, len(prompts))

        clock = _Clock()
        given = self._conditions(prompts, texts, language, speaker, weakened=chosen.guided and chosen.use_erg_tag)
        target = None
        if targets is not None:
            wanted = texts if target_lyrics is None else several(target_lyrics)
            target = self._conditions(for_each(targets, prompts), wanted, language, speaker)
        waveform, latents = (None, None) if source is None else self._encode(source)
        clock.lap("encode")

        frames = math.ceil(chosen.duration * LATENT_HZ) if latents is None else latents.shape[-1]
        sampled = self._sample(given, chosen, frames, *numbers, source=latents, target=target, on_step=on_step)
        clock.lap("steps")

        duration_s = chosen.duration
        if waveform is not None:
            duration_s = waveform.shape[-1] / CODEC_HZ + (sampled.shape[-1] - frames) / LATENT_HZ
        waveforms = self._decode(sampled, round(duration_s * SAMPLE_RATE_HZ))
        clock.lap("decode")
        return [
            Clip(audio, item.cpu(), seed, retake_seed, clock.seconds)
            for audio, item, seed, retake_seed in zip(waveforms, sampled, *numbers, strict=True)
        ]

    def generate_latents(
        self,
        *,
        text: Tensor,
        lyrics: Tensor,
        text_mask: Tensor | None = None,
        text_null: Tensor | None = None,
        speaker: Tensor | None = None,
        lyric_mask: Tensor | None = None,
        target_text: Tensor | None = None,
        target_text_mask: Tensor | None = None,
        target_speaker: Tensor | None = None,
        target_lyrics: Tensor | None = None,
        target_lyric_mask: Tensor | None = None,
        source: Tensor | None = None,
        seeds: int | Sequence[int] = 1,
        retake_seeds: int | Sequence[int] = 100,
        on_step: Callable[[Step], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """Generate latents from encoded conditions.

        Args:
            text: states of the text encoder [B, L, text dim].
            lyrics: int64 tokens [B, Ll].
            text_mask: [B, L], 0 on padding; None if nothing is padded.
            text_null: states [B, L, text dim] of the weakened text encoder, for `use_erg_tag`; None uses zeros in the
                unconditional branch.
            speaker: embeddings [B, speaker dim]; None is no particular voice (zeros).
            lyric_mask: [B, Ll], 0 on padding; None if nothing is padded.
            target_text: for an edit, the conditions of the result; other `target_*` default to the source's.
            target_text_mask: see `target_text`.
            target_speaker: see `target_text`.
            target_lyrics: see `target_text`.
            target_lyric_mask: see `target_text`.
            source: latents [1 or B, C, bins, frames] that repaint, extend, edit and audio2audio start from.
            seeds: one per song, or the first of consecutive ones.
            retake_seeds: the same for the second noise, of retake, repaint, extend and edit.
            on_step: called after every step.
            **options: fields of `SamplingOptions`.

        Returns:
            Latents, float32 [B, C, bins, frames].

        Raises:
            SamplingError: the inputs do not fit together or the model.
            pydantic.ValidationError: an option is unknown or out of range.
        """
        chosen = SamplingOptions(**options)
        require_inputs(chosen, source, target_text)
        given = self._encoded(text, text_mask, speaker, lyrics, lyric_mask, text_null)
        target = None
        if target_text is not None:
            other_lyrics = lyrics if target_lyrics is None else target_lyrics
            other_mask = lyric_mask if target_lyrics is None else target_lyric_mask
            other_speaker = speaker if target_speaker is None else target_speaker
            target = self._encoded(target_text, target_text_mask, other_speaker, other_lyrics, other_mask)
        songs = given.batch_size
        return self._sample(
            given,
            chosen,
            frames_of(chosen.duration) if source is None else source.shape[-1],
            seeds_of(seeds, songs),
            seeds_of(retake_seeds, songs),
            source=source,
            target=target,
            on_step=on_step,
        )

    @torch.no_grad()
    def _sample(
        self,
        conditions: Conditions,
        options: SamplingOptions,
        frames: int,
        seeds: Sequence[int],
        retake_seeds: Sequence[int],
        *,
        source: Tensor | None,
        target: Conditions | None,
        on_step: Callable[[Step], None] | None,
    ) -> Tensor:
        items = conditions.batch_size
        if target is not None and target.batch_size != items:
            raise SamplingError(f"{target.batch_size} targets for {items} songs")
        for checked in (conditions, target):
            if checked is not None:
                require_fit(checked, self.transformer.config)
        if source is not None:
            source = self._expanded(source, items)
        dtype = self.transformer.dtype
        with self._on_device(self.transformer):
            job = self._job(
                transformer=self.transformer,
                conditions=conditions.to(self.device, dtype),
                options=options,
                frames=frames,
                seeds=seeds,
                retake_seeds=retake_seeds,
                source=source,
                target=None if target is None else target.to(self.device, dtype),
                on_step=on_step,
            )
            return _TASKS[options.task](job)

    def warm_up(self, songs: int = 1) -> None:
        """Trigger compilation and kernel tuning, so that the first batch of `songs` songs does not wait for it."""
        config = self.transformer.config
        self.generate_latents(
            text=torch.zeros(songs, 3, config["text_embedding_dim"]),
            lyrics=torch.zeros(songs, 5, dtype=torch.int64),
            duration=2.0,
            infer_steps=4,  # the middle ones are guided, the others not: covers both batch sizes
        )

    def _conditions(
        self,
        prompts: Sequence[str],
        lyrics: Sequence[str],
        language: str | None,
        speaker: Tensor | None,
        weakened: bool = False,
    ) -> Conditions:
        assert self.text_encoder is not None
        return make_conditions(
            prompts,
            lyrics,
            text_encoder=self.text_encoder,
            vocabulary=self.vocabulary,
            speaker_dim=self.transformer.config["speaker_embedding_dim"],
            language=language,
            speaker=speaker,
            weakened_text=weakened,
        )

    def _encoded(
        self,
        text: Tensor,
        text_mask: Tensor | None,
        speaker: Tensor | None,
        lyrics: Tensor,
        lyric_mask: Tensor | None,
        text_null: Tensor | None = None,
    ) -> Conditions:
        dim = self.transformer.config["speaker_embedding_dim"]
        return Conditions(
            text=text,
            text_mask=text.new_ones(text.shape[:2]) if text_mask is None else text_mask,
            speaker=text.new_zeros(len(text), dim) if speaker is None else speaker,
            lyrics=lyrics,
            lyric_mask=text.new_ones(lyrics.shape) if lyric_mask is None else lyric_mask,
            text_null=text_null,
        )

    def _expanded(self, source: Tensor, items: int) -> Tensor:
        config = self.transformer.config
        channels, bins = config["in_channels"], config["max_height"]
        if source.ndim != 4 or tuple(source.shape[1:3]) != (channels, bins):
            raise SamplingError(f"source latents are {list(source.shape)}, not [B, {channels}, {bins}, frames]")
        if len(source) not in (1, items):
            raise SamplingError(f"{len(source)} sources for {items} songs: give one, or one for each")
        return source.to(self.device, torch.float32).expand(items, -1, -1, -1)

    def _encode(self, source: Path | str) -> tuple[Tensor, Tensor]:
        assert self.codec is not None
        waveform, rate_hz = read_audio(Path(source))
        with self._on_device(self.codec):
            latents, _ = self.codec.encode(_in_whole_frames(waveform)[None].to(self.device), rate_hz)
        return waveform, latents

    def _decode(self, latents: Tensor, samples: int) -> list[Tensor]:
        """Decode one song at a time: decoding the whole batch would need more memory than anything else."""
        assert self.codec is not None
        with self._on_device(self.codec):
            return [self.codec.decode(item[None], SAMPLE_RATE_HZ)[0, :, :samples].cpu() for item in latents]

    @contextmanager
    def _on_device(self, model: nn.Module) -> Iterator[None]:
        if not self._offload:
            yield
            return
        model.to(self.device)
        try:
            yield
        finally:
            model.to("cpu")

    def _require_fit(self) -> None:
        config = self.transformer.config
        dim = config["text_embedding_dim"]
        if self.text_encoder is not None and self.text_encoder.dim != dim:
            raise SamplingError(
                f"the text encoder's states have {self.text_encoder.dim} dimensions and the transformer expects "
                f"{dim}: use the text encoder that it was trained with"
            )
        words = config["lyric_encoder_vocab_size"]
        if self.vocabulary is not None and self.vocabulary.get_vocab_size() != words:
            raise SamplingError(
                f"the lyric vocabulary has {self.vocabulary.get_vocab_size()} entries and the transformer expects "
                f"{words}: use the vocabulary that it was trained with"
            )


class _Clock:
    """Measures the seconds of each phase of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self._last = now - self._last, now


def _in_whole_frames(waveform: Tensor) -> Tensor:
    """A source [2, samples] at the codec's rate, with its end mirrored to fill the last frame.

    The codec would pad with silence, which would leave a gap of up to 93 ms in an extended song.
    """
    missing = -waveform.shape[-1] % SAMPLES_PER_FRAME
    return F.pad(waveform, (0, missing), mode="reflect") if missing < waveform.shape[-1] else waveform


def _vocabulary(path: Path) -> Tokenizer:
    try:
        return load_vocabulary(path)
    except Exception as error:  # tokenizers raises nothing narrower for a missing or damaged file
        raise SamplingError(f"{path} is not a lyric vocabulary: {error}") from error
