"""YAMNet: which of 521 AudioSet classes are present. A MobileNet over mel patches, quantised to 8 bits, in ONNX.

Plakal and Ellis, TensorFlow model garden, 2019; classes of Gemmeke et al., "Audio Set", ICASSP 2017.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from scipy.special import expit

from stages.signal.spectrum import magnitudes, mel_filters

RATE_HZ = 16_000
_N_FFT, _WINDOW, _HOP = 512, 400, 160
_MELS = 64
_LOG_OFFSET = 1e-3
_PATCH, _PATCH_HOP = 96, 48  # frames of 10 ms


@dataclass(frozen=True)
class _Quantization:
    """real = scale * (quantised - zero_point), quantised in 0..255."""

    scale: float
    zero_point: int

    def quantize(self, real: np.ndarray) -> np.ndarray:
        return np.clip(np.round(real / self.scale) + self.zero_point, 0, 255).astype(np.uint8)

    def dequantize(self, quantized: np.ndarray) -> np.ndarray:
        return np.float32(self.scale) * (quantized.astype(np.float32) - self.zero_point)


class YamNet:
    """Audio to class probabilities.

    Attributes:
        classes: AudioSet display names in the order of the probabilities.
    """

    def __init__(self, folder: Path) -> None:
        """Load from a folder with `model.onnx`, its weights, `yamnet_class_map.csv` and `quantization.json`."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            folder / "model.onnx", sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        with (folder / "yamnet_class_map.csv").open(encoding="utf-8", newline="") as table:
            self.classes = [row["display_name"] for row in csv.DictReader(table)]
        quantization = json.loads((folder / "quantization.json").read_text(encoding="utf-8"))
        self._audio = _Quantization(**quantization["audio"])
        self._scores = _Quantization(**quantization["class_scores"])

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Mono audio [samples] at RATE_HZ to probabilities float32 [patches, 521]: 0.96 s each, every 0.48 s."""
        # The graph takes one patch at a time.
        scores = [self._session.run(None, {self._input: patch})[0].reshape(-1) for patch in self._patches(audio)]
        return expit(self._scores.dequantize(np.stack(scores)))

    def _patches(self, audio: np.ndarray) -> np.ndarray:
        """Quantised log-mel patches [patches, 1, 1, 96, 64]; audio shorter than one is padded with silence."""
        shortest = _N_FFT + (_PATCH - 1) * _HOP
        audio = np.pad(audio, (0, max(0, shortest - len(audio))))
        magnitude = magnitudes(audio, _N_FFT, _HOP, window=_WINDOW, centred=False)
        filters = mel_filters(RATE_HZ, _N_FFT, _MELS, 125, 7500, htk=True, area=False)
        log_mel = np.log(filters @ magnitude + _LOG_OFFSET).T
        windows = np.lib.stride_tricks.sliding_window_view(log_mel, _PATCH, axis=0)[::_PATCH_HOP]
        return self._audio.quantize(windows.swapaxes(1, 2))[:, None, None]
