"""Songs from a checkpoint: audio files, each with a sidecar that says all it takes to make it again."""

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

from pipeline.errors import DataProblem, UsageProblem, naming
from pipeline.models.digests import sha256
from pipeline.models.store import ModelStore
from pipeline.sampling.config import SampleConfig, in_flags, path_and_scale
from training.checkpoints.lora import Lora
from training.checkpoints.released_layout import CheckpointProblem, fingerprint
from training.sampling import Clip, Sampler, SamplingError, Step
from training.sampling.audio import audio_format, write_audio
from training.sampling.sampler import SAMPLE_RATE_HZ

# Told of a phase, how much of it is done, and of how much; 0 of 0 where that is not known.
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class WrittenTake:
    """A song that was written, and what its sidecar says."""

    path: Path
    sidecar: dict[str, Any]


def outputs(config: SampleConfig, overwrite: bool = False) -> dict[int, Path]:
    """Songs of the batch that are to be written, from 0, and where.

    Several songs without `{n}` or `{seed}` in their name get their numbers at its end.

    Raises:
        UsageProblem: an unknown audio format, two songs of one name, a place where none can be written, one that would
            replace the source, or, unless `overwrite`, a file in the way.
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
    """What makes a song besides its settings: digests of all files that go in, versions, and the device.

    Raises:
        UsageProblem, DataProblem: a file that is missing.
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
    """Where the parameters of an audio file are."""
    return audio.with_suffix(".json")


def differences(recorded: Mapping[str, Any], made_with: Mapping[str, Any]) -> list[str]:
    """What is not as it was when a sidecar was written, each as a sentence."""
    return [
        f"{name} was {recorded[name]}, is {made_with.get(name, 'gone')}"
        for name in recorded
        if recorded[name] != made_with.get(name)
    ]


def sample(
    config: SampleConfig, paths: Mapping[int, Path], made_with: Mapping[str, Any], watch: Watch
) -> list[WrittenTake]:
    """Generate and write songs.

    Args:
        config: with nothing left open, see `sample_config.resolve`.
        paths: `outputs(config)`.
        made_with: `provenance(config)`.
        watch: told how far it is.

    Raises:
        UsageProblem: settings that the sampler refuses.
        DataProblem: a checkpoint or model that cannot be used.
    """
    with user_errors():
        _compute_alike(config)
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
    """Turn what a user can mend into the pipeline's own errors, in the command line's words."""
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
    """Asked before a song is computed for nothing."""
    for path in (audio, sidecar_path(audio)):
        try:
            if path.is_dir():
                raise UsageProblem(f"--out: {path} is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.").close()
        except OSError as error:
            raise UsageProblem(f"--out {path}: {error.filename}: {error.strerror}") from error


def _compute_alike(config: SampleConfig) -> None:
    """Round as the run did that a sidecar is of."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.backends.cudnn.deterministic = True  # its transposed convolutions may add up in any order


def load(config: SampleConfig) -> Sampler:
    """The sampler that the settings name, compiled where they ask for it."""
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
    """A folder as it is, or that of an entry of the model store.

    Raises:
        UsageProblem: a path that is no folder, or no entry of this name.
        DataProblem: the entry is not in the store yet.
    """
    if Path(name).is_dir():
        return Path(name)
    if os.sep in name:
        raise UsageProblem(f"--text-encoder: {name} is no folder")
    return ModelStore().resolve(name).path


def _loras(config: SampleConfig) -> list[Lora]:
    parts = (path_and_scale(text) for text in config.lora)
    return [Lora(path, f"lora_{index}", scale) for index, (path, scale) in enumerate(parts)]


def _speaker(path: Path) -> torch.Tensor:
    """The only array of a file."""
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
    """Seconds that the batch took, and seconds of all its audio over those from prompt to waveform."""
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
            "sha256": sha256(path),
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
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _duration_s(clip: Clip) -> float:
    return clip.waveform.shape[-1] / SAMPLE_RATE_HZ


def _digest(path: Path) -> str:
    """Of a file's bytes, or of a folder's files and their names."""
    if not path.is_dir():
        return sha256(path)[:16]
    names = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{sha256(file)} {file.relative_to(path).as_posix()}\n" for file in names)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _device_name(device: str) -> str:
    if device == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return torch.cuda.get_device_name(device)
