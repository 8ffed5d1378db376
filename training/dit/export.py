"""Export a run: a checkpoint in the released layout, or a LoRA file as diffusers stores it."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from schemas.files import written_whole
from training.checkpoints.released_layout import companions, load_codec, load_transformer, save_checkpoint
from training.dit.config import TrainConfig
from training.model import ACEStepTransformer2DModel
from training.run.run_folder import RunFolder, RunProblem


def export_run(
    run: Path,
    out: Path,
    *,
    codec: Path | None = None,
    step: int | None = None,
    average: bool = False,
    text_encoder: Path | None = None,
    vocabulary: Path | None = None,
    own_vocabulary: Path | None = None,
) -> Path:
    """Write a checkpoint in the released layout, or the adapter of a LoRA run. The dataset is not needed.

    Args:
        run: the run's folder.
        out: a new or empty folder.
        codec: folder with `music_dcae_f8c8/` and `music_vocoder/`; None takes those of the checkpoint that the run
            started from.
        step: step of the run's checkpoint; None is the last one.
        average: export the moving average of the weights.
        text_encoder: folder to copy; None takes that of the checkpoint that the run started from, if any.
        vocabulary: lyric vocabulary to copy; None likewise.
        own_vocabulary: vocabulary for a model trained from random weights, where none is given and its size fits.

    Returns:
        The folder or, for a LoRA, the adapter's file.

    Raises:
        RunProblem: not a run, no such step, no moving average, or no codec.
        CheckpointProblem: a file to copy does not fit, or the folder is not empty.
    """
    folder = RunFolder(run)
    config = _config(folder)
    step = folder.chosen(step)
    trained = trained_weights(folder, step, "average" if average else "model")
    if config.lora:
        return _save_lora(trained, config, out)
    transformer = _begun(config, folder.progress(step)["model"])
    transformer.load_state_dict(trained, strict=False)  # the run does not store frozen weights
    source = config.checkpoint
    if codec is None and source is None:
        raise RunProblem("the run started from random weights: name the codec of its latents with --codec")
    beside = companions(source, transformer) if source else (None, _if_it_fits(own_vocabulary, transformer))
    save_checkpoint(
        out,
        transformer=transformer,
        codec=load_codec(codec or source),  # type: ignore[arg-type]  # one of them is set
        text_encoder=text_encoder or beside[0],
        vocabulary=vocabulary or beside[1],
    )
    companions(out, transformer)
    return out


def _config(folder: RunFolder) -> TrainConfig:
    stored = folder.root / "config.json"
    if not stored.is_file():
        raise RunProblem(f"{folder.root} is not a run: it has no config.json")
    return TrainConfig.model_validate_json(stored.read_text())


def trained_weights(folder: RunFolder, step: int, part: str) -> dict[str, Tensor]:
    """The tensors of one part (`model` or `average`) of a run's checkpoint, by their names in the model.

    Raises:
        RunProblem: the checkpoint has no such part.
    """
    stored = FileSystemReader(folder.path(step)).read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        key.removeprefix(f"{part}."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in stored.items()
        if key.startswith(f"{part}.") and isinstance(entry, TensorStorageMetadata)
    }
    if not tensors:
        raise RunProblem(f"{folder.root} keeps no {part} of its weights: see the setting ema")
    folder.load(step, {part: tensors})
    return tensors


def _begun(config: TrainConfig, sizes: dict[str, Any]) -> ACEStepTransformer2DModel:
    """The model that the run started from; frozen weights still have these values."""
    if config.checkpoint:
        return load_transformer(config.checkpoint)
    torch.manual_seed(config.seed)
    return ACEStepTransformer2DModel(**sizes)


def _if_it_fits(vocabulary: Path | None, transformer: ACEStepTransformer2DModel) -> Path | None:
    known = vocabulary and Tokenizer.from_file(str(vocabulary)).get_vocab_size()
    return vocabulary if known == transformer.config["lyric_encoder_vocab_size"] else None


def _save_lora(trained: dict[str, Tensor], config: TrainConfig, out: Path) -> Path:
    assert config.lora is not None
    out.mkdir(parents=True, exist_ok=True)
    file = out / LORA_WEIGHT_NAME_SAFE
    settings = {"r": config.lora.rank, "lora_alpha": config.lora.alpha, "target_modules": list(config.lora.targets)}
    peft_config = {f"transformer.{name}": value for name, value in settings.items()}
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(peft_config)}
    weights = {f"transformer.{name.replace('.default.', '.')}": weight for name, weight in trained.items()}
    with written_whole(file) as draft:
        save_file(weights, draft, metadata)
    return file
