"""The encoder of a CTranslate2 Whisper as Hugging Face safetensors.

Transcription runs the CTranslate2 file itself; SSL features need only the encoder, in torch, optionally with gradients
or on a GPU. The numbers are the same, the names differ: CTranslate2 stacks query, key and value into `linear_0`.
"""

import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}  # ctranslate2/specs/model_spec.py, `CT2_TYPES`


def convert(source: Path, target: Path) -> None:
    """Write `model.safetensors` (float16) and `config.json` for `transformers.WhisperEncoder.from_pretrained`.

    Args:
        source: folder with CTranslate2's `model.bin`.
        target: existing folder to write into.

    Raises:
        ValueError: `model.bin` is not a CTranslate2 Whisper, or its tensors are quantised.
    """
    variables = _read_ctranslate2((source / "model.bin").read_bytes())
    layers = sum(name.startswith("encoder/layer_") and name.endswith("ffn/linear_0/weight") for name in variables)
    encoder = _encoder(variables, layers)
    if any(tensor.dtype != np.float16 for tensor in encoder.values()):
        raise ValueError("expected a float16 model.bin")
    save_file(encoder, target / "model.safetensors", metadata={"format": "pt"})
    width, mels, _ = encoder["conv1.weight"].shape
    config = {
        "architectures": ["WhisperEncoder"],
        "d_model": width,
        "dtype": "float16",
        "encoder_attention_heads": int(variables["encoder/num_heads"]),
        "encoder_ffn_dim": encoder["layers.0.fc1.weight"].shape[0],
        "encoder_layers": layers,
        "max_source_positions": encoder["embed_positions.weight"].shape[0],
        "model_type": "whisper",
        "num_mel_bins": mels,
    }
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _encoder(variables: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    tensors = {"embed_positions.weight": variables["encoder/position_encodings/encodings"]}
    for conv in ("conv1", "conv2"):
        tensors |= _linear(conv, variables, f"encoder/{conv}")
    for index in range(layers):
        tensors |= _layer(f"layers.{index}", variables, f"encoder/layer_{index}")
    tensors |= _norm("layer_norm", variables, "encoder/layer_norm")
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _layer(name: str, variables: dict[str, np.ndarray], old: str) -> dict[str, np.ndarray]:
    query, key, value = np.split(variables[f"{old}/self_attention/linear_0/weight"], 3)
    query_bias, _, value_bias = np.split(
        variables[f"{old}/self_attention/linear_0/bias"], 3
    )  # Whisper's keys have none
    return {
        f"{name}.self_attn.q_proj.weight": query,
        f"{name}.self_attn.q_proj.bias": query_bias,
        f"{name}.self_attn.k_proj.weight": key,
        f"{name}.self_attn.v_proj.weight": value,
        f"{name}.self_attn.v_proj.bias": value_bias,
        **_linear(f"{name}.self_attn.out_proj", variables, f"{old}/self_attention/linear_1"),
        **_norm(f"{name}.self_attn_layer_norm", variables, f"{old}/self_attention/layer_norm"),
        **_linear(f"{name}.fc1", variables, f"{old}/ffn/linear_0"),
        **_linear(f"{name}.fc2", variables, f"{old}/ffn/linear_1"),
        **_norm(f"{name}.final_layer_norm", variables, f"{old}/ffn/layer_norm"),
    }


def _linear(name: str, variables: dict[str, np.ndarray], old: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": variables[f"{old}/weight"], f"{name}.bias": variables[f"{old}/bias"]}


def _norm(name: str, variables: dict[str, np.ndarray], old: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": variables[f"{old}/gamma"], f"{name}.bias": variables[f"{old}/beta"]}


def _read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """Variables of a CTranslate2 binary, version 6: header, then name, shape, type and bytes of each.

    Source: `ModelSpec._serialize` in ctranslate2/specs/model_spec.py. The aliases at the end are the decoder's.
    """
    position = 0

    def take(layout: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{layout}", data, position)
        position += struct.calcsize(f"<{layout}")
        return int(value)

    def text() -> str:
        nonlocal position
        length = take("H")
        position += length
        return data[position - length : position - 1].decode()  # without the closing zero

    version, spec, _revision = take("I"), text(), take("I")
    if (version, spec) != (6, "WhisperSpec"):
        raise ValueError(f"expected a version 6 WhisperSpec, got version {version} of {spec!r}")
    variables = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        dtype, size = np.dtype(_DTYPES[take("B")]), take("I")
        variables[name] = np.frombuffer(data, dtype, size // dtype.itemsize, position).reshape(shape)
        position += size
    return variables
