"""YAMNet, 8-bit ONNX: unpacked, with the scales of its quantised input and output in a file of their own."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np

from pipeline.models.convert import protobuf

_MEMBERS = ("model.onnx", "model.data")
_TENSORS = ("audio", "class_scores")  # the graph's names for its input and output


def convert(source: Path, target: Path) -> None:
    """Write `model.onnx`, `model.data` (its weights), `yamnet_class_map.csv` and `quantization.json`.

    `quantization.json` holds, for "audio" and "class_scores", the `scale` and `zero_point` of
    real = scale * (quantised - zero_point).

    Args:
        source: folder with `YamNet_w8a8.onnx.zip` and `yamnet_class_map.csv`.
        target: folder to write into.
    """
    with zipfile.ZipFile(source / "YamNet_w8a8.onnx.zip") as archive:
        for member in archive.infolist():
            name = Path(member.filename).name
            if name in _MEMBERS:
                (target / name).write_bytes(archive.read(member))
    shutil.copyfile(source / "yamnet_class_map.csv", target / "yamnet_class_map.csv")
    quantization = _quantization(target / "model.onnx")
    (target / "quantization.json").write_text(json.dumps(quantization, indent=1) + "\n", encoding="utf-8")


def _quantization(path: Path) -> dict[str, dict[str, float]]:
    """From the graph's initialisers: ModelProto.graph = 7, .initializer = 5, TensorProto.name = 8, .raw_data = 9."""
    (graph,) = protobuf.fields(path.read_bytes())[7]
    raw = {}
    for initializer in protobuf.fields(graph)[5]:
        tensor = protobuf.fields(initializer)
        raw[tensor[8][0].decode()] = tensor[9][0] if 9 in tensor else b""  # none: it lies in model.data
    return {
        name: {
            "scale": float(np.frombuffer(raw[f"{name}_scale"], "<f4")[0]),
            "zero_point": int(np.frombuffer(raw[f"{name}_zero_point"], np.uint8)[0]),
        }
        for name in _TENSORS
    }
