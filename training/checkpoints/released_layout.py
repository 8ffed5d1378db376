"""Checkpoints in the released folder layout of ACE-Step v1.

`ace_step_transformer/`, `music_dcae_f8c8/` and `music_vocoder/` hold a diffusers config and safetensors weights, in one
file or sharded; `umt5-base/` (or `text_encoder/`, for another encoder) is a transformers folder. songmill adds
`lyric_vocabulary.json`, and allows a vocoder without weights, which has only a config. Mismatches that diffusers would
warn about are errors here, and nothing is unpickled.
"""

import hashlib
import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from tokenizers import Tokenizer

from schemas.files import file_digest, written_whole
from stages.nets.codec.codec import COMPRESSION, VOCODERS, Vocoder
from training.checkpoints.weight_files import (
    PICKLES,
    CheckpointProblem,
    first_few,
    is_finite,
    missing_weights,
    open_weights,
    read_json,
)
from training.model import ACEStepTransformer2DModel, MusicDCAE

__all__ = [
    "Checkpoint",
    "CheckpointProblem",
    "companions",
    "empty_transformer",
    "fingerprint",
    "load_autoencoder",
    "load_checkpoint",
    "load_codec",
    "load_transformer",
    "load_vocoder",
    "save_checkpoint",
    "save_codec",
]

_TRANSFORMER = "ace_step_transformer"
_AUTOENCODER = "music_dcae_f8c8"
_VOCODER = "music_vocoder"
_TEXT_ENCODERS = ("umt5-base", "text_encoder")
_VOCABULARY = "lyric_vocabulary.json"
_CONFIG = "config.json"
_IDENTIFYING = (".json", ".safetensors", ".model")

_Model = TypeVar("_Model", bound=ModelMixin)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint, its models in evaluation mode.

    Attributes:
        transformer: in the requested dtype.
        codec: its autoencoder in the requested dtype, its vocoder in float32.
        text_encoder: folder of the text encoder and its tokenizer; None if the checkpoint has none.
        vocabulary: the lyric vocabulary's file; None if the checkpoint has none.
        folder: the checkpoint's folder.
    """

    transformer: ACEStepTransformer2DModel
    codec: MusicDCAE
    text_encoder: Path | None
    vocabulary: Path | None
    folder: Path


def load_checkpoint(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint tensor by tensor, so that no weight is in memory twice.

    The vocoder stays in float32: its weight norms and its tanh are fragile in half precision. All that
    file headers show is checked before the first weight is read.

    Raises:
        CheckpointProblem: something is missing, damaged or does not fit together.
    """
    if not folder.is_dir():
        raise CheckpointProblem(f"{folder} is no folder: give the one that holds {_TRANSFORMER}/")
    transformer = _empty_model(folder / _TRANSFORMER, ACEStepTransformer2DModel)
    codec = _empty_codec(folder)
    _check_latents(transformer, codec, folder)
    checkpoint = Checkpoint(
        transformer, codec, _text_encoder(folder, transformer), _vocabulary(folder, transformer), folder
    )
    _fill(transformer, folder / _TRANSFORMER, dtype, device)
    _fill(codec.autoencoder, folder / _AUTOENCODER, dtype, device)
    _fill(codec.vocoder, folder / _VOCODER, torch.float32, device)
    return checkpoint


def load_transformer(folder: Path) -> ACEStepTransformer2DModel:
    """Read only the transformer of a checkpoint, in float32 on the CPU.

    Raises:
        CheckpointProblem: it is missing, damaged or does not fit its config.
    """
    if not folder.is_dir():
        raise CheckpointProblem(f"{folder} is no folder: give the one that holds {_TRANSFORMER}/")
    transformer = _empty_model(folder / _TRANSFORMER, ACEStepTransformer2DModel)
    _fill(transformer, folder / _TRANSFORMER, torch.float32, "cpu")
    return transformer


def empty_transformer(folder: Path) -> ACEStepTransformer2DModel:
    """The transformer of a checkpoint without its weights, on the meta device.

    Raises:
        CheckpointProblem: see `load_transformer`; only configs and file headers are checked.
    """
    return _empty_model(folder / _TRANSFORMER, ACEStepTransformer2DModel)


def load_codec(folder: Path) -> MusicDCAE:
    """Read only the codec of a checkpoint, in float32 on the CPU.

    Raises:
        CheckpointProblem: a part is missing or damaged, or the two do not fit together.
    """
    codec = _empty_codec(folder)
    _fill(codec.autoencoder, folder / _AUTOENCODER, torch.float32, "cpu")
    _fill(codec.vocoder, folder / _VOCODER, torch.float32, "cpu")
    return codec


def load_autoencoder(folder: Path) -> AutoencoderDC:
    """Read only the autoencoder of a checkpoint, in float32 on the CPU.

    Raises:
        CheckpointProblem: it is missing, damaged or does not fit its config.
    """
    autoencoder = _empty_model(folder / _AUTOENCODER, AutoencoderDC)
    _fill(autoencoder, folder / _AUTOENCODER, torch.float32, "cpu")
    return autoencoder


def load_vocoder(folder: Path) -> Vocoder:
    """Read only the vocoder of a checkpoint, in float32 on the CPU.

    Raises:
        CheckpointProblem: it is missing, damaged or does not fit its config.
    """
    vocoder = _empty_model(folder / _VOCODER, *VOCODERS.values())
    _fill(vocoder, folder / _VOCODER, torch.float32, "cpu")
    return vocoder


def companions(folder: Path, transformer: ACEStepTransformer2DModel) -> tuple[Path | None, Path | None]:
    """The text encoder's folder and the lyric vocabulary's file of a checkpoint; None for one that it lacks.

    Raises:
        CheckpointProblem: one of them does not fit the transformer.
    """
    return _text_encoder(folder, transformer), _vocabulary(folder, transformer)


def save_checkpoint(
    folder: Path,
    *,
    transformer: ACEStepTransformer2DModel,
    codec: MusicDCAE,
    text_encoder: Path | None = None,
    vocabulary: Path | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write a checkpoint; the folder appears only once it is complete.

    Args:
        folder: a new or empty folder.
        transformer: without LoRAs, which are stored in files of their own.
        codec: autoencoder and vocoder, written to a folder each.
        text_encoder: a transformers folder with its tokenizer, copied without pickled weights.
        vocabulary: lyric vocabulary file, copied.
        max_shard_size: larger weights are split over several files, e.g. "500MB".

    Raises:
        CheckpointProblem: the folder exists and is not empty.
        ValueError: LoRAs are loaded into the transformer.
    """
    if getattr(transformer, "peft_config", None):
        raise ValueError("the transformer has LoRAs loaded: unload them before saving it")
    with _written_whole(folder) as draft:
        transformer.save_pretrained(draft / _TRANSFORMER, max_shard_size=max_shard_size)
        _save_codec(codec, draft, max_shard_size)
        if text_encoder:
            name = text_encoder.name if text_encoder.name in _TEXT_ENCODERS else "text_encoder"
            no_pickles = shutil.ignore_patterns(*(f"*{suffix}" for suffix in PICKLES))
            shutil.copytree(text_encoder, draft / name, ignore=no_pickles)
        if vocabulary:
            shutil.copyfile(vocabulary, draft / _VOCABULARY)


def save_codec(folder: Path, codec: MusicDCAE) -> None:
    """Write only a codec; the folder appears only once it is complete.

    Raises:
        CheckpointProblem: the folder exists and is not empty.
    """
    with _written_whole(folder) as draft:
        _save_codec(codec, draft)


def fingerprint(folder: Path) -> str:
    """A checkpoint's identity: 16 hexadecimal digits over the names and bytes of its weights and configs.

    Reads every byte at the speed of SHA-256: seconds for the released 8 GB.
    """
    digest = hashlib.sha256()
    parts = (_TRANSFORMER, _AUTOENCODER, _VOCODER, *_TEXT_ENCODERS)
    files = [file for part in parts for file in (folder / part).rglob("*") if file.suffix in _IDENTIFYING]
    for file in sorted(filter(Path.is_file, [*files, folder / _VOCABULARY])):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        digest.update(bytes.fromhex(file_digest(file)))
    return digest.hexdigest()[:16]


def _empty_model(folder: Path, *classes: type[_Model]) -> _Model:
    """The model that a folder's config describes, one of `classes`, in eval mode on the meta device."""
    if not folder.is_dir():
        raise CheckpointProblem(f"{folder} is missing: copy it from the release")
    path = folder / _CONFIG
    config = read_json(path)
    cls = next((cls for cls in classes if cls.__name__ == config.get("_class_name")), None)
    if cls is None:
        wanted = " or ".join(cls.__name__ for cls in classes)
        raise CheckpointProblem(f"{path}: _class_name is {config.get('_class_name')}: copy a {wanted} there")
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    if unknown := sorted(arguments.keys() - inspect.signature(cls.__init__).parameters.keys()):
        raise CheckpointProblem(f"{path}: {cls.__name__} has no {first_few(unknown)}: copy the file from the release")
    try:
        with init_empty_weights():
            model = cls(**arguments)
    except Exception as problem:  # wrong arguments can fail in any way
        raise CheckpointProblem(f"{path} describes no {cls.__name__}: {problem}; copy it from the release") from problem
    _check_parameters(model, folder)
    return model.eval()


def _save_codec(codec: MusicDCAE, folder: Path, max_shard_size: str = "5GB") -> None:
    codec.autoencoder.save_pretrained(folder / _AUTOENCODER, max_shard_size=max_shard_size)
    if codec.vocoder.state_dict():
        codec.vocoder.save_pretrained(folder / _VOCODER, max_shard_size=max_shard_size)
    else:
        codec.vocoder.save_config(folder / _VOCODER)


def _empty_codec(folder: Path) -> MusicDCAE:
    autoencoder = _empty_model(folder / _AUTOENCODER, AutoencoderDC)
    vocoder = _empty_model(folder / _VOCODER, *VOCODERS.values())
    try:
        return MusicDCAE.from_parts(autoencoder, vocoder)
    except ValueError as problem:
        raise CheckpointProblem(
            f"{folder / _AUTOENCODER / _CONFIG} and {folder / _VOCODER / _CONFIG} make no codec: {problem}; take both "
            "folders from one release"
        ) from problem


def _check_parameters(model: ModelMixin, folder: Path) -> None:
    """Require the names and shapes in the files' headers to be the model's."""
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    stored: dict[str, list[int]] = {}
    for file in _weight_files(model, folder):
        with open_weights(file) as weights:
            stored |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 - no dict
    wrong = [
        f"{name} is {stored[name]}, not {shape}" for name, shape in expected.items() if stored.get(name, shape) != shape
    ]
    for problem, names in (
        ("lacks", [name for name in expected if name not in stored]),
        ("has what the model has not:", [name for name in stored if name not in expected]),
        ("does not fit its config:", wrong),
    ):
        if names:
            raise CheckpointProblem(f"{folder} {problem} {first_few(names)}: take config and weights from one release")


def _weight_files(model: ModelMixin, folder: Path) -> list[Path]:
    """A model's safetensors files: those of the index, or the only one; `GriffinLim` has none."""
    if not model.state_dict():
        return []
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        if (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            return [folder / SAFETENSORS_WEIGHTS_NAME]
        sharded = any(folder.glob("*.safetensors"))
        raise missing_weights(folder, SAFE_WEIGHTS_INDEX_NAME if sharded else SAFETENSORS_WEIGHTS_NAME)
    shards = read_json(index).get("weight_map")
    if not shards or not isinstance(shards, dict) or any(name != Path(str(name)).name for name in shards.values()):
        raise CheckpointProblem(f"{index}: weight_map must name files beside it: copy the index from the release")
    files = [folder / name for name in sorted(set(shards.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointProblem(f"{folder} lacks {first_few(missing)}: copy all that its index lists from the release")
    return files


def _check_latents(transformer: ACEStepTransformer2DModel, codec: MusicDCAE, folder: Path) -> None:
    """Require the transformer's latents to have the codec's shape."""
    channels, bins = codec.autoencoder.config["latent_channels"], codec.vocoder.config["n_mels"] // COMPRESSION
    for name, value in (("in_channels", channels), ("out_channels", channels), ("max_height", bins)):
        if transformer.config[name] != value:
            raise CheckpointProblem(
                f"{folder / _TRANSFORMER / _CONFIG}: {name} is {transformer.config[name]}, but the codec's latents "
                f"have {channels} channels of {bins} bins: take {_AUTOENCODER}/ and {_VOCODER}/ from the transformer's "
                "release"
            )


def _text_encoder(folder: Path, transformer: ACEStepTransformer2DModel) -> Path | None:
    encoder = next((folder / name for name in _TEXT_ENCODERS if (folder / name).is_dir()), None)
    if encoder is None:
        return None
    if not any(encoder.glob("*.safetensors")):
        raise missing_weights(encoder, "model.safetensors")
    config = read_json(encoder / _CONFIG)
    dim, expected = config.get("d_model", config.get("hidden_size")), transformer.config["text_embedding_dim"]
    if dim != expected:
        raise CheckpointProblem(
            f"{encoder} has states of {dim} channels, but the transformer takes {expected}: copy the text "
            "encoder that it was trained with there"
        )
    return encoder


def _vocabulary(folder: Path, transformer: ACEStepTransformer2DModel) -> Path | None:
    path = folder / _VOCABULARY
    if not path.exists():
        return None
    try:
        size = Tokenizer.from_file(str(path)).get_vocab_size()
    except Exception as problem:  # tokenizers raises nothing narrower
        raise CheckpointProblem(
            f"{path} is no vocabulary of the tokenizers library: {problem}; copy it from the release"
        ) from problem
    if size != (expected := transformer.config["lyric_encoder_vocab_size"]):
        raise CheckpointProblem(
            f"{path} has {size} tokens, but the transformer knows {expected}: copy the vocabulary that it was "
            "trained with there"
        )
    return path


def _fill(model: ModelMixin, folder: Path, dtype: torch.dtype, device: torch.device | str) -> None:
    """Load weights into an empty model, as diffusers' `from_pretrained` does, and check for NaN in the same pass."""
    state = {}
    for file in _weight_files(model, folder):
        with open_weights(file) as weights:
            for name in weights.keys():  # noqa: SIM118 - no dict
                state[name] = weights.get_tensor(name).to(device, dtype)
                if not is_finite(state[name]):
                    raise CheckpointProblem(
                        f"{file}: {name} holds NaN or infinity in {dtype}: take an earlier checkpoint, or a wider dtype"
                    )
    model.load_state_dict(state, assign=True)
    model.to(device)  # type: ignore[arg-type]  # diffusers' wrapper of `to` loses `self`


@contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that is renamed to it at the end, or removed after an error."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointProblem(f"{folder} exists: choose a new folder, or empty this one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(folder) as draft:
        draft.mkdir()
        yield draft
