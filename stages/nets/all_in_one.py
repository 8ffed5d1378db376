"""All-In-One: song structure and beats from the spectrograms of four stems.

Kim and Nam, "All-In-One Metrical and Functional Structure Analysis with Neighborhood Attentions on Demixed Audio",
WASPAA 2023; the package `all-in-one-infer`. Its own loader downloads files, and importing the whole package requires
torchaudio and a separator, so only its modules for spectrogram, network and decoding are imported.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

SAMPLE_RATE_HZ = 44_100
FRAME_HZ = 100
STEMS = ("bass", "drums", "other", "vocals")
_LEAST_SPREAD = 1e-4  # of the section probabilities: below it, the network saw no change in the song


@dataclass(frozen=True)
class Segment:
    """A part of a song; times in seconds, and one of All-In-One's ten labels."""

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True)
class Structure:
    """A song's structure: contiguous segments that cover it, and its tempo in BPM, None with fewer than two beats."""

    segments: list[Segment]
    bpm: float | None


class AllInOne:
    """One network, or several whose logits are averaged (the paper's eight folds)."""

    def __init__(self, network: Any, device: str) -> None:
        self._network = network.eval().to(device)
        self._device = device

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "AllInOne":
        """Load all checkpoints (`*.pth`) of a folder: dictionaries of `config` and `state_dict`.

        Raises:
            ImportError: the package is not installed.
            ValueError: the folder holds no checkpoint.
        """
        _open_package()
        from allin1_infer.models.ensemble import Ensemble

        if not (files := sorted(folder.glob("*.pth"))):
            raise ValueError(f"{folder}: expected All-In-One's checkpoints (*.pth), found none")
        networks = [_network(file) for file in files]
        # The ensemble keeps its members in a list, not a ModuleList, and so does not move them to the device.
        return cls(Ensemble([network.eval().to(device) for network in networks]), device)

    @torch.inference_mode()
    def analyse(self, stems: Mapping[str, np.ndarray]) -> Structure:
        """Int16 mono stems [samples] at 44.1 kHz by the names in `STEMS`, all equally long, to their structure."""
        duration_s = len(stems["vocals"]) / SAMPLE_RATE_HZ
        if duration_s * FRAME_HZ < 1:
            return Structure([], None)
        spectrograms = self._spectrograms(stems)
        logits = self._network(torch.from_numpy(spectrograms)[None].to(self._device))
        return Structure(self._segments(logits, duration_s), self._bpm(logits))

    @cached_property
    def _processor(self) -> Any:
        from allin1_infer.spectrogram import build_spec_processor

        return build_spec_processor()

    def _spectrograms(self, stems: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logarithmic spectrograms [stem, frame, 81 bands] at 100 Hz."""
        from allin1_infer.spectrogram import compute_spectrogram_from_stem_arrays

        made: np.ndarray = compute_spectrogram_from_stem_arrays(dict(stems), SAMPLE_RATE_HZ, self._processor)
        return made

    def _segments(self, logits: Any, duration_s: float) -> list[Segment]:
        from allin1_infer.postprocessing import postprocess_functional_structure

        if torch.sigmoid(logits.logits_section[0]).std(correction=0) < _LEAST_SPREAD:
            # The package's peak picking would take rounding errors for boundaries.
            return [Segment(0.0, duration_s, _labels()[int(logits.logits_function[0].softmax(0).mean(1).argmax())])]
        found = postprocess_functional_structure(logits, self._network.cfg)
        starts_s = [0.0, *(float(segment.start) for segment in found[1:])]
        ends_s = [*starts_s[1:], duration_s]  # frames end up to 10 ms before or after the audio
        spans = zip(starts_s, ends_s, found, strict=True)
        return [Segment(start_s, end_s, segment.label) for start_s, end_s, segment in spans if start_s < end_s]

    def _bpm(self, logits: Any) -> float | None:
        """The most common tempo between the beats that the package's dynamic Bayesian network decodes."""
        from allin1_infer.postprocessing import estimate_tempo_from_beats, postprocess_metrical_structure

        bpm = estimate_tempo_from_beats(postprocess_metrical_structure(logits, self._network.cfg)["beats"])
        return None if bpm is None else float(bpm)


def _labels() -> list[str]:
    from allin1_infer.config import HARMONIX_LABELS

    return list(HARMONIX_LABELS)


def _open_package() -> None:
    """Make the package's modules importable one by one, without running its `__init__`."""
    if "allin1_infer" not in sys.modules:
        if (spec := find_spec("allin1_infer")) is None:
            raise ImportError("No module named 'allin1_infer'")
        sys.modules["allin1_infer"] = module_from_spec(spec)


def _network(file: Path) -> Any:
    from allin1_infer.models.allinone import AllInOne as Network
    from omegaconf import OmegaConf

    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    network = Network(OmegaConf.create(checkpoint["config"]))
    network.load_state_dict(checkpoint["state_dict"])
    return network
