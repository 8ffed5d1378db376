"""ACE-Step's own sampler on top of songmill's: its parameter names, and what it computes otherwise in a batch.

The public numbers were computed by the reference implementation. Where it couples the songs of a batch, lets padding
leak or miscounts an extension, songmill does not; `ReferenceSampler` does what the reference does.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from training.sampling import Sampler
from training.sampling.job import SamplingJob
from training.sampling.noise import SeededNoise
from training.sampling.options import Task
from training.sampling.solvers import Euler, Heun, Pingpong, Solver
from training.sampling.window import Extension, frames_of

_WHOLE_BATCH = (0, 1, 2, 3)


def plain_arguments(reference: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Sampler.generate_latents` for parameters of the reference's pipeline.

    Takes the reference's `src_latents` and `ref_latents`, `seed` and `generator_seed`, `add_retake_noise` and
    `audio2audio_enable`, and `B`, whose conditions must already be a batch; all others keep their names.
    """
    given = dict(reference)
    sources = [given.pop(name) for name in ("src_latents", "ref_latents") if name in given]
    songs = given.pop("B", len(given["text"]))
    assert len(given["text"]) == songs
    return {
        "seeds": given.pop("seed", 1),
        "retake_seeds": given.pop("generator_seed", 100),
        "task": _implied_task(given, sources[0] if sources else None),
        **({"source": sources[0]} if sources else {}),
        **given,
    }


def _implied_task(given: dict[str, Any], source: Tensor | None) -> Task:
    retake, audio2audio = given.pop("add_retake_noise", False), given.pop("audio2audio_enable", False)
    if "target_text" in given:
        return "edit"
    if source is None:
        return "retake" if retake else "text2music"
    if audio2audio:
        return "audio2audio"
    beyond = frames_of(given.get("repaint_end") or 0) > source.shape[-1] or given.get("repaint_start", 0) < 0
    return "extend" if beyond else "repaint"


class _LeakyPadding:
    """A transformer that is prepared as the reference's, where padded frames are seen."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def prepare(self, *args: Tensor) -> Any:
        return self._transformer.prepare(*args, compat=True)


class _ReferenceNoise(SeededNoise):
    def draw_from_first(self, frames: int) -> Tensor:
        """The whole batch from the first song's generator."""
        shape = (len(self._generators), *self._shape, frames)
        return torch.randn(shape, generator=self._generators[0]).to(self._device)


class _SourceLongNoise(SeededNoise):
    """Draws as many frames as the source has, however many are asked for."""

    source_frames = 0

    def draw(self, frames: int) -> Tensor:
        return super().draw(self.source_frames)


class _ReferenceJob(SamplingJob):
    def __post_init__(self) -> None:
        object.__setattr__(self, "transformer", _LeakyPadding(self.transformer))

    def noise(self) -> _ReferenceNoise:
        return _ReferenceNoise(self.seeds, self._shape, self.conditions.text.device)

    def retake_noise(self) -> _SourceLongNoise:
        noise = _SourceLongNoise(self.retake_seeds, self._shape, self.conditions.text.device)
        noise.source_frames = self.frames
        return noise

    def solver(self, noise: SeededNoise) -> Solver:
        """Steps scaled about the mean of the whole batch; pingpong's fresh noise from the first song's generator."""
        assert isinstance(noise, _ReferenceNoise)
        solvers = {"euler": Euler, "heun": Heun}
        if self.options.scheduler_type in solvers:
            return solvers[self.options.scheduler_type](self.options.omega_scale, mean_dims=_WHOLE_BATCH)
        return Pingpong(lambda: noise.draw_from_first(self.frames))

    def extension(self) -> Extension:
        """The end of the window is counted from the extended beginning: the left frames are lost on the right."""
        extension, options = super().extension(), self.options
        beyond = frames_of(options.repaint_end or 0) - self.frames - extension.left
        return replace(extension, right=max(frames_of(options.extend_right), beyond, 0))


class ReferenceSampler(Sampler):
    """Computes as the reference does."""

    _job = _ReferenceJob
