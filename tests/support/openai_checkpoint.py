"""A CTranslate2 Whisper as a checkpoint of OpenAI's: the same weights under the other library's names."""

from pathlib import Path

import numpy as np
import torch

from pipeline.models.convert.whisper_encoder import _read_ctranslate2

_SIDES = {"encoder": ("audio", ("self_attention",)), "decoder": ("text", ("self_attention", "attention"))}
_ATTENTION = {"self_attention": "attn", "attention": "cross_attn"}


def convert(model_bin: Path, target: Path) -> None:
    """Write `target`, a dictionary of `dims` and `model_state_dict` in float16."""
    variables = _read_ctranslate2(model_bin.read_bytes())
    state = {
        "encoder.positional_embedding": variables["encoder/position_encodings/encodings"],
        "decoder.positional_embedding": variables["decoder/position_encodings/encodings"],
        "decoder.token_embedding.weight": variables["decoder/embeddings/weight"],
        **_weight_and_bias(variables, "encoder/conv1", "encoder.conv1"),
        **_weight_and_bias(variables, "encoder/conv2", "encoder.conv2"),
        **_norm(variables, "encoder/layer_norm", "encoder.ln_post"),
        **_norm(variables, "decoder/layer_norm", "decoder.ln"),
    }
    layers = {side: _layers(variables, side) for side in _SIDES}
    for side, count in layers.items():
        for index in range(count):
            state |= _layer(variables, f"{side}/layer_{index}", f"{side}.blocks.{index}", _SIDES[side][1])
    dims = {"n_vocab": len(state["decoder.token_embedding.weight"]), "n_mels": state["encoder.conv1.weight"].shape[1]}
    for side, (name, _) in _SIDES.items():
        context, width = state[f"{side}.positional_embedding"].shape
        sizes = {"ctx": context, "state": width, "head": int(variables[f"{side}/num_heads"]), "layer": layers[side]}
        dims |= {f"n_{name}_{what}": int(size) for what, size in sizes.items()}
    tensors = {name: torch.from_numpy(np.array(value, np.float16)) for name, value in state.items()}
    torch.save({"dims": dims, "model_state_dict": tensors}, target)


def _layers(variables: dict[str, np.ndarray], side: str) -> int:
    return sum(name.startswith(f"{side}/layer_") and name.endswith("ffn/linear_0/weight") for name in variables)


def _layer(variables: dict[str, np.ndarray], old: str, new: str, attentions: tuple[str, ...]) -> dict[str, np.ndarray]:
    made = {
        **_norm(variables, f"{old}/ffn/layer_norm", f"{new}.mlp_ln"),
        **_weight_and_bias(variables, f"{old}/ffn/linear_0", f"{new}.mlp.0"),
        **_weight_and_bias(variables, f"{old}/ffn/linear_1", f"{new}.mlp.2"),
    }
    for attention in attentions:
        made |= _attention(variables, f"{old}/{attention}", f"{new}.{_ATTENTION[attention]}")
    return made


def _attention(variables: dict[str, np.ndarray], old: str, new: str) -> dict[str, np.ndarray]:
    stacked = [f"{old}/linear_0"] if "self" in old else [f"{old}/linear_0", f"{old}/linear_1"]
    weights = np.concatenate([variables[f"{name}/weight"] for name in stacked])
    biases = np.concatenate([variables[f"{name}/bias"] for name in stacked])
    made = _norm(variables, f"{old}/layer_norm", f"{new}_ln")
    for name, weight, bias in zip(("query", "key", "value"), np.split(weights, 3), np.split(biases, 3), strict=True):
        made |= {f"{new}.{name}.weight": weight} | ({f"{new}.{name}.bias": bias} if name != "key" else {})
    return made | _weight_and_bias(variables, f"{old}/linear_{len(stacked)}", f"{new}.out")


def _weight_and_bias(variables: dict[str, np.ndarray], old: str, new: str) -> dict[str, np.ndarray]:
    return {f"{new}.{name}": variables[f"{old}/{name}"] for name in ("weight", "bias")}


def _norm(variables: dict[str, np.ndarray], old: str, new: str) -> dict[str, np.ndarray]:
    return {f"{new}.weight": variables[f"{old}/gamma"], f"{new}.bias": variables[f"{old}/beta"]}
