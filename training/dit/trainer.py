"""Training the diffusion transformer on shards."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from training.checkpoints.released_layout import load_transformer
from training.data import FeatureMaker, ShardStream, SongIndex, Widths, open_songs
from training.data.batch import Batch
from training.dit.config import TrainConfig
from training.dit.flops import peak_flops, training_flops
from training.dit.memory_estimate import PeakMemory
from training.dit.objective import Losses, Objective
from training.dit.previews import Previews
from training.dit.validation import validation_loss
from training.model import ACEStepTransformer2DModel
from training.run.base_trainer import BaseTrainer, Figures
from training.run.optimizer import build_optimizer, set_learning_rate
from training.run.parallel import gradient_sync, parallelize, to_full_tensor
from training.run.run_folder import RunProblem
from training.sampling.audio import write_audio

# Frozen weights are not saved, they are those of the starting checkpoint: a LoRA run saves only its adapter.
_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True)


class Trainer(BaseTrainer):
    """One process of a run: `BaseTrainer` with the flow-matching objective on songs from shards.

    Args:
        config: settings of the run.
        folder: the run's folder; if it holds a checkpoint, training resumes from it.
        device: device to compute on.
        workers: processes that read songs ahead.
        maker: computes the songs' features; None reads those stored beside the shards.
        report: called with the metrics of each logged step, on rank 0.

    Raises:
        RunProblem: the folder holds a run with other settings.
        DatasetProblem: the shards do not fit each other or the config.
        CheckpointProblem: the checkpoint to start from is damaged.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        workers: int = 0,
        maker: FeatureMaker | None = None,
        report: Callable[[Figures], None] | None = None,
    ) -> None:
        super().__init__(config, folder, device=device, report=report)
        self.config = config
        self._memory = PeakMemory(device)
        self._device = torch.device(device)
        self._peak_flops = peak_flops(self._device, getattr(torch, config.precision))
        self.songs = open_songs(config.data, maker=maker)
        self.stream = ShardStream(self.songs, config.data, rank=self.rank, world_size=self.ranks, workers=workers)
        if config.data.validation_share:
            self._held_out()  # fail now on an empty validation split, not after the first thousand steps
        torch.manual_seed(config.seed)
        self.transformer = build_transformer(config, self.songs)
        self._previews = (
            Previews(config.samples, self.transformer, config.checkpoint, self._device) if config.samples else None
        )
        self.transformer.to(self._device).train()  # type: ignore[arg-type]  # diffusers' wrapper of `to` loses `self`
        self.model = parallelize(
            self.transformer, self._blocks(), config.sharing, self._device, methods=("prepare", "velocity")
        )
        self.objective = Objective(config.objective)
        self.optimizer = build_optimizer(self.transformer.parameters(), config.optimizer)
        self.average = WeightAverage(self.transformer, config.ema) if config.ema else None
        self.resume()
        self._batches = iter(self.stream)

    def take_step(self) -> dict[str, float]:
        """One optimizer step on `accumulation` batches."""
        started, waited, songs, seconds, flops = time.perf_counter(), 0.0, 0, 0.0, 0
        set_learning_rate(self.optimizer, self.step, self.config.steps, self.config.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        parts: list[Losses] = []
        for part in range(self.config.accumulation):
            asked = time.perf_counter()
            batch = next(self._batches)
            waited += time.perf_counter() - asked
            losses = self._backward(batch.to(self._device), part)
            self.require_finite(losses.total, batch.track_ids)
            parts.append(losses.detached())
            songs, seconds = songs + len(batch.track_ids), seconds + batch.seconds
            flops += training_flops(self.transformer.config, batch)
        norm = nn.utils.clip_grad_norm_(self.transformer.parameters(), self.config.optimizer.clip)
        self.optimizer.step()
        if self.average:
            self.average.update(self.transformer)
        # Read the values before the clock: that waits for the GPU.
        losses_and_norm = {**_mean_losses(parts), "gradient_norm": float(to_full_tensor(norm))}
        taken = time.perf_counter() - started
        return {
            "epoch": self.stream.epoch,
            **losses_and_norm,
            "lr": self.optimizer.param_groups[0]["lr"],
            "songs_per_s": songs * self.ranks / taken,
            "audio_s_per_s": seconds * self.ranks / taken,
            "mfu": flops / taken / self._peak_flops,
            "data_wait_share": waited / taken,
            "peak_memory_gb": self._memory.peak / 1e9,
        }

    def validated(self) -> dict[str, float]:
        """Losses on held-out songs, see `validation_loss`; empty without a validation split."""
        if not self.config.data.validation_share:
            return {}
        self.transformer.eval()
        losses = validation_loss(self.transformer, self._held_out(), self.objective, self._device, self.config.seed)
        self.transformer.train()
        return losses

    def _held_out(self) -> ShardStream:
        return ShardStream(self.songs, self.config.data, split="validation", rank=self.rank, world_size=self.ranks)

    def after_step(self) -> None:
        """Sample preview songs when they are due."""
        # A sharded model needs all ranks to compute; of copies, one is enough.
        if self.config.samples and self.due(self.config.samples.every) and (self.rank == 0 or self._in_parts):
            self._sample()

    def state(self) -> dict[str, Any]:
        """Trained weights, optimizer state and moving average."""
        weights, optimizer = get_state_dict(self.model, self.optimizer, options=_TRAINED_ONLY)
        average = {"average": self.average.weights} if self.average else {}
        return {"model": weights, "optimizer": optimizer, **average}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore weights and optimizer; the moving average has been read in place."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(ignore_frozen_params=True, strict=False),
        )

    def progress(self) -> dict[str, Any]:
        """Position in the data stream, and the model's config."""
        model = {name: value for name, value in self.transformer.config.items() if not name.startswith("_")}
        return {"stream": self.stream.state_dict(), "model": model}

    def load_progress(self, progress: dict[str, Any]) -> None:
        """Restore the position in the data stream."""
        self.stream.load_state_dict(progress["stream"])

    def _backward(self, batch: Batch, part: int) -> Losses:
        # Dropout draws from the global generators, noise from its own; the step determines both seeds.
        seed = step_seed(self.config.seed, self.step, part, self.rank)
        torch.manual_seed(seed)
        with gradient_sync(self.model, last=part == self.config.accumulation - 1):
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                steps_left = self.config.steps - self.step
                noise = torch.Generator().manual_seed(seed)
                losses = self.objective(self.model, batch, noise, steps_left)  # type: ignore[arg-type]  # or its DDP wrapper
            (losses.total / self.config.accumulation).backward()
        return losses

    def _sample(self) -> None:
        assert self._previews is not None
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            songs = self._previews()
        if self.rank == 0:
            for number, song in enumerate(songs, 1):
                path = self.folder.samples / f"step-{self.step:08d}-{number}.flac"
                path.parent.mkdir(exist_ok=True)
                write_audio(path, song)

    @property
    def _in_parts(self) -> bool:
        return self.ranks > 1 and self.config.sharing == "shards"

    def _blocks(self) -> list[nn.Module]:
        model = self.transformer
        return [*model.transformer_blocks, *model.projectors, *model.lyric_encoder.encoders]


class WeightAverage:
    """Exponential moving average of the trained weights, on their device.

    Args:
        model: the model in training.
        decay: share of the average that an update keeps.

    Attributes:
        weights: parameter name -> averaged weight.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.weights = {name: weight.detach().clone() for name, weight in _trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the weights after a step."""
        for name, weight in _trained(model):
            self.weights[name].lerp_(weight, 1 - self._decay)


def build_transformer(config: TrainConfig, songs: SongIndex) -> ACEStepTransformer2DModel:
    """The transformer to train: loaded from the checkpoint, or new with the widths of the songs' features.

    Raises:
        RunProblem: the checkpoint does not fit the features' widths.
    """
    if config.checkpoint:
        transformer = load_transformer(config.checkpoint)
        _require_fit(transformer, songs)
    else:
        transformer = ACEStepTransformer2DModel(**model_sizes(config, songs.widths))
    make_trainable(transformer, config)
    if config.compile:
        transformer.compile_repeated_blocks(dynamic=True)
    return transformer


def make_trainable(transformer: ACEStepTransformer2DModel, config: TrainConfig) -> None:
    """Freeze weights that are not trained and add LoRA adapters, as the config says."""
    for name, head in zip(transformer.ssl_names, transformer.projectors, strict=True):
        head.requires_grad_(name in config.data.ssl)
    if config.lora:
        _adapt(transformer, config)
    transformer.gradient_checkpointing = config.gradient_checkpointing
    transformer.lyric_encoder.gradient_checkpointing = config.gradient_checkpointing


def model_sizes(config: TrainConfig, widths: Widths) -> dict[str, Any]:
    """Config of a new transformer: `config.model`, else the features' widths, else the released values."""
    sizes = {
        "text_embedding_dim": widths.text,
        "speaker_embedding_dim": widths.speaker,
        "ssl_names": list(widths.ssl),
        "ssl_latent_dims": list(widths.ssl.values()),
        **config.model,
    }
    # As in the released model, REPA heads read after a third of the blocks.
    depth = sizes.get("num_layers", 24) // 3
    return {"ssl_encoder_depths": [depth] * len(sizes["ssl_names"]), **sizes}


def _require_fit(transformer: ACEStepTransformer2DModel, songs: SongIndex) -> None:
    config, widths = transformer.config, songs.widths
    pairs = [
        ("text states", widths.text, config["text_embedding_dim"]),
        ("speaker embeddings", widths.speaker, config["speaker_embedding_dim"]),
        *(
            (f"{name} states", dim, dict(zip(config["ssl_names"], config["ssl_latent_dims"], strict=True)).get(name))
            for name, dim in widths.ssl.items()
        ),
    ]
    for what, have, wanted in pairs:
        if have != wanted:
            raise RunProblem(f"the shards' {what} have {have} dimensions, the checkpoint expects {wanted or 'none'}")


def _adapt(transformer: ACEStepTransformer2DModel, config: TrainConfig) -> None:
    from peft import LoraConfig  # imported here: it takes seconds

    assert config.lora is not None
    for weight in transformer.parameters():
        weight.requires_grad_(False)
        weight.data = weight.data.to(getattr(torch, config.lora.frozen_precision))
    targets = list(config.lora.targets)
    alpha: Any = config.lora.alpha  # peft declares int and accepts both
    transformer.add_adapter(LoraConfig(r=config.lora.rank, lora_alpha=alpha, target_modules=targets))


def step_seed(seed: int, step: int, batch: int, rank: int) -> int:
    """A seed for one batch of one step on one rank: the same in every process and with every version of Python."""
    [state] = np.random.SeedSequence([seed % 2**64, step, batch, rank]).generate_state(1, np.uint64)
    return int(state)


def _trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def _mean_losses(parts: list[Losses]) -> dict[str, float]:
    named = [
        {"loss": losses.total, "denoising": losses.denoising}
        | {f"alignment/{name}": loss for name, loss in losses.alignment.items()}
        for losses in parts
    ]
    return {name: sum(float(losses[name]) for losses in named) / len(named) for name in named[0]}
