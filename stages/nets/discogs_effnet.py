"""Discogs-EffNet and classifiers on its embeddings, as the Music Technology Group publishes them for ONNX.

Alonso-Jiménez, Serra and Bogdanov, "Music Representation Learning Based on Editorial Metadata from Discogs", ISMIR
2022. A network is two files: NAME.onnx, and NAME.json with its classes and the purposes of its outputs.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view

from stages.nets.musicnn import log_mel

PATCH = 128  # frames of a patch, 2 s
HOP = 62  # frames from patch to patch, 1 s
# An output's name where the metadata has only TensorFlow's name for it.
_USUAL = {"predictions": "activations", "embeddings": "embeddings"}


class PublishedNetwork:
    """One network with its class names."""

    def __init__(self, folder: Path, device: str) -> None:
        """Open the network in a folder; `device` is "cpu" or "cuda".

        Raises:
            FileNotFoundError: the folder holds no .onnx file, or no metadata beside it.
        """
        file = next(iter(sorted(folder.glob("*.onnx"))), None)
        if file is None:
            raise FileNotFoundError(f"{folder}: no .onnx file")
        metadata = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        self.classes: list[str] = metadata["classes"]
        self._file = file
        self._outputs = metadata["schema"]["outputs"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        wanted = ["CUDAExecutionProvider"] * (device == "cuda") + ["CPUExecutionProvider"]
        there = onnxruntime.get_available_providers()
        self._session = onnxruntime.InferenceSession(file, options, [name for name in wanted if name in there])

    def __call__(self, inputs: np.ndarray, *purposes: str) -> list[np.ndarray]:
        """Outputs [inputs, width] by purpose, "predictions" or "embeddings".

        Raises:
            ValueError: the network has no such output.
        """
        names = [self._output(purpose) for purpose in purposes]
        return self._session.run(names, {self._session.get_inputs()[0].name: inputs})

    def _output(self, purpose: str) -> str:
        there = [output.name for output in self._session.get_outputs()]
        listed = [output["name"] for output in self._outputs if output.get("output_purpose") == purpose]
        for name in (*listed, _USUAL[purpose]):
            if name in there:
                return name
        if len(there) == 1:
            return there[0]
        raise ValueError(f"{self._file}: none of the outputs {', '.join(there)} is known as its {purpose}")


def patches(audio: np.ndarray) -> np.ndarray:
    """Mel patches float32 [patches, PATCH, 96] of mono audio [samples] at 16 kHz, overlapping by half.

    A remainder too short for a patch is dropped; a track too short for one is repeated. The spectrogram is musicnn's.
    """
    mel = log_mel(audio)
    if len(mel) < PATCH:
        mel = np.resize(mel, (PATCH, mel.shape[1]))
    return np.ascontiguousarray(sliding_window_view(mel, PATCH, axis=0)[::HOP].swapaxes(1, 2), dtype=np.float32)
