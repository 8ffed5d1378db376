"""Settings of `songmill sample`: read from a file and the command line, checked, and completed with defaults."""

import difflib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from pipeline.errors import UsageProblem
from pipeline.ingest.sidecars import decode_text
from training.sampling.inputs import MAX_SEED, require_inputs
from training.sampling.options import SamplingOptions

T = TypeVar("T")
Several = Annotated[
    tuple[T, ...], BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,))
]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

# Field -> flag, for flags that are shorter than the fields they set.
SHORT = {
    "infer_steps": "steps",
    "scheduler_type": "scheduler",
    "cfg_type": "guidance",
    "use_erg_tag": "erg_tag",
    "use_erg_lyric": "erg_lyric",
    "use_erg_diffusion": "erg_diffusion",
    "retake_variance": "variance",
    "ref_audio_strength": "strength",
}

# Settings with one value per song, or one for all.
_PER_SONG = ("prompt", "lyrics", "lyrics_text", "target_prompt", "target_lyrics", "target_lyrics_text")
_SEEDS = ("seed", "retake_seed")
_FILES = ("checkpoint", "source", "speaker", "vocabulary")


class SampleConfig(SamplingOptions):
    """All settings of `songmill sample`.

    Attributes:
        checkpoint: folder in the released layout.
        out: audio file; `{n}` and `{seed}` stand for a song's number, from 1, and its seed.
        prompt: what to generate; several make a batch.
        lyrics: lyrics files, one for all songs or one for each.
        lyrics_text: the lyrics themselves, instead of files.
        language: language of lyric lines whose own cannot be detected reliably.
        target_prompt: for an edit, a description of the result; `prompt` describes the source.
        target_lyrics: for an edit, lyrics files of the result.
        target_lyrics_text: the same lyrics themselves, instead of files.
        seed: one for each song, or a single one that counts up over the songs; random if empty.
        retake_seed: the same for the second noise, of retake, repaint, extend and edit.
        speaker: `.npy` or `.safetensors` file with a voice embedding.
        source: audio file that the task starts from.
        lora: `PATH` or `PATH:SCALE`.
        text_encoder: folder, or entry of the model store; None is the checkpoint's.
        vocabulary: lyric vocabulary (tokenizers JSON); None is the checkpoint's.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: dtype of the weights; `auto` is bfloat16 on CUDA and float32 on the CPU.
        compile: compile the transformer.
        int8: keep its weights in 8 bits.
        offload: keep on the device only the model in use.
        threads: CPU threads; another number rounds differently. None takes PyTorch's default.
        item: write only this song of the batch, from 0. The others are computed too, since a batch rounds differently
            than a single song.
    """

    checkpoint: Path
    out: Path
    prompt: Several[str] = Field(min_length=1)
    lyrics: Several[Path] = ()
    lyrics_text: Several[str] = ()
    language: str | None = None
    target_prompt: Several[str] = ()
    target_lyrics: Several[Path] = ()
    target_lyrics_text: Several[str] = ()
    seed: Several[Seed] = ()
    retake_seed: Several[Seed] = ()
    speaker: Path | None = None
    source: Path | None = None
    lora: Several[str] = ()
    text_encoder: str | None = None
    vocabulary: Path | None = None
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    int8: bool = False
    offload: bool = False
    threads: int | None = Field(None, ge=1)
    item: int | None = Field(None, ge=0)

    @field_validator("oss_steps", mode="before")
    @classmethod
    def _split(cls, steps: Any) -> Any:
        return [step for step in steps.split(",") if step.strip()] if isinstance(steps, str) else steps

    @field_validator("*")
    @classmethod
    def _require_unicode(cls, value: Any) -> Any:
        """Reject surrogates, which stand for bytes that are not UTF-8: tokenizers and sidecars cannot encode them."""
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, str | Path) and any("\ud800" <= character <= "\udfff" for character in str(part)):
                raise ValueError("must be UTF-8")
        return value

    @model_validator(mode="after")
    def _check_files(self) -> "SampleConfig":
        for field in ("lyrics", "target_lyrics"):
            if getattr(self, field) and getattr(self, f"{field}_text"):
                raise ValueError(f"{field} and {field}_text exclude each other: leave one of them out")
        require_inputs(self, self.source, self.target_prompt or None)
        for field in _FILES:
            path = getattr(self, field)
            if path is not None and not path.exists():
                raise ValueError(f"{flag(field)}: {path} does not exist")
        return self

    @property
    def songs(self) -> int:
        """Number of songs in the batch."""
        return max(len(getattr(self, field)) for field in (*_PER_SONG, *_SEEDS))

    @property
    def options(self) -> dict[str, Any]:
        """The fields of `SamplingOptions`."""
        return {field: getattr(self, field) for field in SamplingOptions.model_fields}


def flag(field: str) -> str:
    """The command line's name for a field."""
    return field.upper() if field == "checkpoint" else "--" + SHORT.get(field, field).replace("_", "-")


def in_flags(message: str) -> str:
    """A sampler's message with fields replaced by their flags, except within paths."""
    fields = "|".join(sorted((field for field in SampleConfig.model_fields if "_" in field), key=len, reverse=True))
    message = re.sub(r"\buse_(erg_\w+)=False", lambda match: f"--no-{match[1].replace('_', '-')}", message)
    message = re.sub(r"`(\w+)`", lambda match: flag(match[1]), message)
    return re.sub(rf"(?<![\w/.-])({fields})(?![\w/]|\.\w)", lambda match: flag(match[1]), message)


def read_settings(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings from a YAML file or from a clip's sidecar, and the provenance that the sidecar records, if any.

    Keys are flags without their dashes, or names of fields.

    Raises:
        UsageProblem: the file is unreadable, is not a mapping, or has an unknown key; the message suggests the nearest
            known key.
    """
    try:
        text = file.read_text("utf-8")
        loaded = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageProblem(f"--config {file}: {error}") from error
    if not isinstance(loaded, dict):
        raise UsageProblem(f"--config {file}: expected keys such as prompt, steps; found {type(loaded).__name__}")
    made_with: dict[str, Any] = {}
    if isinstance(loaded.get("settings"), dict):
        made_with, loaded = loaded.get("made_with") or {}, loaded["settings"]
    fields = {**{name: name for name in SampleConfig.model_fields}, **{short: field for field, short in SHORT.items()}}
    settings = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            advice = f"did you mean {near[0]}?" if near else "see songmill sample --help"
            raise UsageProblem(f"--config {file}: there is no setting {key}; {advice}")
        settings[fields[name]] = value
    return settings, made_with


def build_config(settings: Mapping[str, Any], given: Mapping[str, Any]) -> SampleConfig:
    """Merge the settings of a file with those of the command line, which take precedence.

    If the file is the sidecar of one song of a batch and the command line changes prompt, lyrics or seed, only that
    song is sampled.

    Raises:
        UsageProblem: the settings are invalid; the message lists every problem with its flag.
    """
    merged = dict(settings)
    if merged.get("item") is not None and any(field in given for field in (*_PER_SONG, *_SEEDS)):
        merged = _alone(merged)
    for field in ("lyrics", "target_lyrics"):
        if field in given:
            merged.pop(f"{field}_text", None)
    try:
        return SampleConfig.model_validate({**merged, **given})
    except ValidationError as error:
        raise UsageProblem("\n       ".join(_format_problem(problem) for problem in error.errors())) from error


def resolve(config: SampleConfig) -> SampleConfig:
    """Complete a config: texts instead of files, all seeds, absolute paths, device, dtype and threads.

    Raises:
        UsageProblem: an unreadable file, counts that do not match, or an unavailable device.
    """
    device = _device(config.device)
    update: dict[str, Any] = {
        "lyrics": (),
        "lyrics_text": config.lyrics_text or tuple(_read_text(path) for path in config.lyrics),
        "target_lyrics": (),
        "target_lyrics_text": config.target_lyrics_text or tuple(_read_text(path) for path in config.target_lyrics),
        "seed": _all_seeds(config.seed, config.songs),
        "retake_seed": _all_seeds(config.retake_seed, config.songs),
        "device": device,
        "dtype": ("bfloat16" if device != "cpu" else "float32") if config.dtype == "auto" else config.dtype,
        "threads": config.threads or torch.get_num_threads(),
        "lora": tuple(_absolute(text) for text in config.lora),
        "text_encoder": _folder_or_entry(config.text_encoder),
        **{field: path.resolve() for field in _FILES if (path := getattr(config, field)) is not None},
    }
    resolved = config.model_copy(update=update)
    if config.item is not None and config.item >= config.songs:
        raise UsageProblem(f"item: there are only {config.songs} songs, counted from 0")
    each = {field: _each(field, getattr(resolved, field), config.songs) for field in (*_PER_SONG, *_SEEDS)}
    return resolved.model_copy(update=each)


def path_and_scale(lora: str) -> tuple[Path, float]:
    """Path and scale of `PATH` or `PATH:SCALE`; the scale defaults to 1.

    Raises:
        UsageProblem: the path does not exist, or the scale is not finite.
    """
    path, scale = Path(lora), 1.0
    before, _, after = lora.rpartition(":")
    if before and not path.exists():
        with suppress(ValueError):
            path, scale = Path(before), float(after)
    if not isfinite(scale):
        raise UsageProblem(f"--lora {lora}: a scale must be a finite number, such as 0.8")
    if not path.exists():
        raise UsageProblem(f"--lora {lora}: {path} does not exist; expected PATH or PATH:SCALE")
    return path, scale


def _absolute(lora: str) -> str:
    path, scale = path_and_scale(lora)
    return f"{path.resolve()}:{scale}"


def _folder_or_entry(text_encoder: str | None) -> str | None:
    is_folder = text_encoder and Path(text_encoder).is_dir()
    return str(Path(text_encoder).resolve()) if text_encoder and is_folder else text_encoder


def _alone(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings to sample one song of a batch on its own."""
    item = settings["item"]
    single = {field: values[item : item + 1] for field in (*_PER_SONG, *_SEEDS) if (values := settings.get(field))}
    return {**settings, **single, "item": None}


def _format_problem(problem: Mapping[str, Any]) -> str:
    message = in_flags(problem["msg"].removeprefix("Value error, "))
    if not problem["loc"]:
        return message
    field = str(problem["loc"][0])
    if problem["type"] in ("missing", "too_short"):
        return f"{flag(field)} is missing"
    return f"{flag(field)}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"


def _device(asked: str) -> str:
    available = torch.cuda.is_available()
    if asked == "auto":
        return "cuda" if available else "cpu"
    if asked != "cpu" and not available:
        raise UsageProblem(f"--device {asked}: PyTorch finds no CUDA device here; use --device cpu")
    if asked.startswith("cuda:") and int(asked.removeprefix("cuda:")) >= (found := torch.cuda.device_count()):
        raise UsageProblem(f"--device {asked}: there are only {found} devices, counted from 0")
    return asked


def _read_text(path: Path) -> str:
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise UsageProblem(f"lyrics: {path}: {error.strerror}") from error


def _all_seeds(seeds: Sequence[int], songs: int) -> tuple[int, ...]:
    if len(seeds) == 1:
        return tuple((seeds[0] + song) % (MAX_SEED + 1) for song in range(songs))
    return tuple(seeds) or tuple(secrets.randbelow(1 << 32) for _ in range(songs))


def _each(field: str, values: Sequence[Any], songs: int) -> tuple[Any, ...]:
    if len(values) not in (0, 1, songs):
        raise UsageProblem(
            f"{flag(field.removesuffix('_text'))}: {len(values)} for {songs} songs; give one for all or one for each"
        )
    return tuple(values) * songs if len(values) == 1 else tuple(values)
