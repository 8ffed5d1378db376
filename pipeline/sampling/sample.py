"""Samples songs from a checkpoint: audio files, each with a sidecar that allows to reproduce it."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.errors import DataProblem, UsageProblem
from pipeline.models.store import ModelStore
from pipeline.sampling.config import SampleConfig, in_flags, path_and_scale
from schemas.files import file_digest, write_durably
from training.checkpoints.lora import Lora
from training.checkpoints.released_layout import CheckpointProblem, fingerprint
from training.sampling import Clip, Sampler, SamplingError, Step
from training.sampling.audio import audio_format, write_audio
from training.sampling.sampler import SAMPLE_RATE_HZ

# Called with a phase, how much of it is done, and its total; 0 and 0 if that is not known.
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class WrittenTake:
    """A song that was written, and the content of its sidecar."""

    path: Path
    sidecar: dict[str, Any]


def outputs(config: SampleConfig, overwrite: bool = False) -> dict[int, Path]:
    """Index of each song of the batch to write, from 0 -> its file.

    If `--out` has neither `{n}` nor `{seed}`, the files of several songs get a number at the end of their names.

    Raises:
        UsageProblem: an unknown audio format, two songs with the same name, a folder that cannot be written to, a file
            that would replace the source or, unless `overwrite`, an existing file.
    """
    items = range(config.songs) if config.item is None else [config.item]
    pattern = str(config.out)
    if len(items) > 1 and not any(place in config.out.name for place in ("{n}", "{seed}")):
        pattern = str(config.out.with_stem(f"{config.out.stem}-{{n}}"))
    paths = {
        item: Path(pattern.replace("{n}", str(item + 1)).replace("{seed}", str(config.seed[item]))) for item in items
    }
    if len(set(paths.values())) < len(paths):
        raise UsageProblem(f"--out {config.out}: songs with the same seed would have the same name; use {{n}}")
    with user_errors():
        for path in paths.values():
            audio_format(path)
    for path in paths.values():
        _require_writable(path)
    existing = [str(file) for path in paths.values() for file in (path, sidecar_path(path)) if file.exists()]
    if existing and not overwrite:
        raise UsageProblem(f"{', '.join(existing)} would be replaced; use another --out, or --overwrite")
    if config.source and config.source.resolve() in map(Path.resolve, paths.values()):
        raise UsageProblem(f"--out would replace the --source {config.source}")
    return paths


def provenance(config: SampleConfig) -> dict[str, Any]:
    """What a song depends on besides its settings: digests of all input files, package versions and the device.

    Raises:
        UsageProblem: a path does not exist.
        DataProblem: a model is not in the store.
    """
    given = {"source": config.source, "speaker": config.speaker, "vocabulary": config.vocabulary}
    return {
        "checkpoint": fingerprint(config.checkpoint),
        **{name: _digest(path) for name, path in given.items() if path},
        **({"text_encoder": _digest(text_encoder_folder(config.text_encoder))} if config.text_encoder else {}),
        **({"loras": [_digest(lora.path) for lora in _loras(config)]} if config.lora else {}),
        **{package: version(package) for package in ("songmill", "torch", "diffusers")},
        "device": _device_name(config.device),
    }


def sidecar_path(audio: Path) -> Path:
    """The sidecar of an audio file."""
    return audio.with_suffix(".json")


def differences(recorded: Mapping[str, Any], made_with: Mapping[str, Any]) -> list[str]:
    """What has changed since a sidecar was written, as `NAME was OLD, is NEW`."""
    return [
        f"{name} was {recorded[name]}, is {made_with.get(name, 'gone')}"
        for name in recorded
        if recorded[name] != made_with.get(name)
    ]


def sample(
    config: SampleConfig, paths: Mapping[int, Path], made_with: Mapping[str, Any], watch: Watch
) -> list[WrittenTake]:
    """Generate songs and write them with their sidecars.

    Args:
        config: completed settings, see `pipeline.sampling.config.resolve`.
        paths: `outputs(config)`.
        made_with: `provenance(config)`.
        watch: called with the progress.

    Raises:
        UsageProblem: the sampler rejects the settings, or the GPU's memory is too small.
        DataProblem: a checkpoint or model cannot be used.
    """
    with user_errors():
        _fix_rounding(config)
        watch("loading", 0, 0)
        started = time.perf_counter()
        sampler = load(config)
        load_s = time.perf_counter() - started
        clips = _generate(sampler, config, watch)
        timing = _timing(load_s, clips)
        watch("writing", 0, 0)
        return [_write(path, clips[item], item, config, made_with, timing) for item, path in paths.items()]


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that the user can fix into the pipeline's own, with flags in place of field names."""
    try:
        yield
    except SamplingError as error:
        raise UsageProblem(in_flags(str(error))) from error
    except CheckpointProblem as error:
        raise DataProblem(str(error)) from error
    except torch.cuda.OutOfMemoryError as error:
        advice = "try --offload, --int8, a shorter --duration or fewer songs at once"
        raise UsageProblem(f"the GPU's memory is too small: {advice}") from error


def _require_writable(audio: Path) -> None:
    """Checked up front, so that no song is computed in vain."""
    for path in (audio, sidecar_path(audio)):
        try:
            if path.is_dir():
                raise UsageProblem(f"--out: {path} is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.").close()
        except OSError as error:
            raise UsageProblem(f"--out {path}: {error.filename}: {error.strerror}") from error


def _fix_rounding(config: SampleConfig) -> None:
    """Set up reproducible rounding: the recorded number of threads, deterministic kernels."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.backends.cudnn.deterministic = True  # transposed convolutions may otherwise sum in any order


def load(config: SampleConfig) -> Sampler:
    """Load the sampler of the settings, and compile it if they say so."""
    sampler = Sampler.from_pretrained(
        config.checkpoint,
        device=config.device,
        dtype=getattr(torch, config.dtype),
        text_encoder=text_encoder_folder(config.text_encoder) if config.text_encoder else None,
        vocabulary=config.vocabulary,
        loras=_loras(config),
        compile=config.compile,
        int8=config.int8,
        offload=config.offload,
    )
    if config.compile:
        sampler.warm_up(max(1, len(config.prompt)))
    return sampler


def text_encoder_folder(name: str) -> Path:
    """The folder of a text encoder, given as a folder or as an entry of the model store.

    Raises:
        UsageProblem: the path is not a folder, or there is no such entry.
        DataProblem: the entry has not been downloaded yet.
    """
    if Path(name).is_dir():
        return Path(name)
    if os.sep in name:
        raise UsageProblem(f"--text-encoder: {name} is not a folder")
    return ModelStore().resolve(name).path


def _loras(config: SampleConfig) -> list[Lora]:
    parts = (path_and_scale(text) for text in config.lora)
    return [Lora(path, f"lora_{index}", scale) for index, (path, scale) in enumerate(parts)]


def _speaker(path: Path) -> torch.Tensor:
    """The speaker embedding in a file, which must hold a single array."""
    try:
        if path.suffix == ".safetensors":
            (array,) = load_file(path).values()
            return array.float()
        return torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (OSError, EOFError, ValueError, TypeError, SafetensorError) as error:
        raise UsageProblem(f"--speaker {path}: expected one array of numbers, in .npy or .safetensors") from error


def _generate(sampler: Sampler, config: SampleConfig, watch: Watch) -> list[Clip]:
    def on_step(step: Step) -> None:
        watch("sampling", step.index, step.steps)
        if step.index == step.steps:
            watch("decoding", 0, 0)

    watch("encoding", 0, 0)
    return sampler.generate(
        config.prompt,
        lyrics=config.lyrics_text or "",
        language=config.language,
        seeds=config.seed,
        retake_seeds=config.retake_seed,
        speaker=_speaker(config.speaker) if config.speaker else None,
        source=config.source,
        target_prompt=config.target_prompt or None,
        target_lyrics=config.target_lyrics_text or None,
        on_step=on_step,
        **config.options,
    )


def _timing(load_s: float, clips: Sequence[Clip]) -> dict[str, float]:
    """Seconds of each phase, and the real-time factor: seconds of audio over seconds from prompt to waveform."""
    seconds = clips[0].seconds
    audio_s = sum(_duration_s(clip) for clip in clips)
    phases = {"load_s": load_s, **{f"{phase}_s": taken_s for phase, taken_s in seconds.items()}}
    return {**phases, "real_time_factor": audio_s / sum(seconds.values())}


def _write(
    path: Path, clip: Clip, item: int, config: SampleConfig, made_with: Mapping[str, Any], timing: Mapping[str, float]
) -> WrittenTake:
    prompt = config.prompt[item]
    tags = {"comment": f"made by songmill {made_with['songmill']}, seed {clip.seed}: {prompt}"}
    gain = write_audio(path, clip.waveform, SAMPLE_RATE_HZ, tags)
    sidecar = {
        "settings": {**config.model_dump(mode="json"), "out": str(path), "item": item if config.songs > 1 else None},
        "made_with": made_with,
        "clip": {
            "audio": path.name,
            "sha256": file_digest(path),
            "prompt": prompt,
            "seed": clip.seed,
            "retake_seed": clip.retake_seed,
            "duration_s": _duration_s(clip),
            "rate_hz": SAMPLE_RATE_HZ,
            "gain": gain,
        },
        "timing": {name: round(value, 4) for name, value in timing.items()},
    }
    _write_json(sidecar_path(path), sidecar)
    return WrittenTake(path, sidecar)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_durably(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _duration_s(clip: Clip) -> float:
    return clip.waveform.shape[-1] / SAMPLE_RATE_HZ


def _digest(path: Path) -> str:
    """Digest of a file's bytes, or of the names and bytes of a folder's files."""
    if not path.is_dir():
        return file_digest(path)[:16]
    names = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{file_digest(file)} {file.relative_to(path).as_posix()}\n" for file in names)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _device_name(device: str) -> str:
    if device == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return torch.cuda.get_device_name(device)
