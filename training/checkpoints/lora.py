"""Low-rank adapters (Hu et al., "LoRA", arXiv 2106.09685) for the transformer, several at once, in peft's layers.

Reads the files of peft (`adapter_config.json` beside `adapter_model.safetensors`) and of diffusers
(`pytorch_lora_weights.safetensors`, where alpha defaults to the rank).
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from torch import Tensor, nn

from training.checkpoints.weight_files import (
    CheckpointProblem,
    first_few,
    is_finite,
    missing_weights,
    open_weights,
    read_json,
)
from training.model import ACEStepTransformer2DModel

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_PEFT_WEIGHTS = "adapter_model.safetensors"
_PEFT_CONFIG = "adapter_config.json"
_KEY = re.compile(r"(?:base_model\.model\.|transformer\.)*(?P<layer>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight")

_Factors = Mapping[str, Mapping[str, Tensor]]  # by layer, then "A" [rank, ...] and "B" [out, rank, ...]


@dataclass(frozen=True)
class Lora:
    """An adapter to load.

    Attributes:
        path: a safetensors file, or the folder that holds it.
        name: unique name of the loaded adapter, without dots.
        scale: multiplies what it adds to the weights; 0 switches it off.
    """

    path: Path
    name: str
    scale: float = 1.0


def load_loras(transformer: ACEStepTransformer2DModel, loras: Sequence[Lora]) -> None:
    """Add adapters to the transformer; all are checked before the first is added.

    Raises:
        CheckpointProblem: a file is missing, damaged, holds NaN or does not fit the transformer, or a name is taken.
    """
    names = [*_loaded(transformer), *(lora.name for lora in loras)]
    for lora in loras:
        if names.count(lora.name) > 1 or not lora.name or "." in lora.name:
            raise CheckpointProblem(f"{lora.path}: choose another name than {lora.name!r}: unique, and without dots")
    adapters = [_read(transformer, lora.path) for lora in loras]
    for lora, (factors, config) in zip(loras, adapters, strict=True):
        _inject(transformer, lora.name, factors, config)
    set_scales(transformer, {lora.name: lora.scale for lora in loras})


def set_scales(transformer: ACEStepTransformer2DModel, scales: Mapping[str, float]) -> None:
    """Change the scales of adapters; those not named keep theirs, and one of scale 0 costs nothing.

    Raises:
        ValueError: no adapter of that name is loaded.
    """
    _require(transformer, scales)
    for layer in _lora_layers(transformer):
        for name, scale in scales.items():
            layer.set_scale(name, scale)
        layer.set_adapter([name for name in _loaded(transformer) if layer.scaling.get(name)], inference_mode=True)


def unload(transformer: ACEStepTransformer2DModel, name: str) -> None:
    """Remove an adapter; after the last one, the transformer's original layers are back.

    Raises:
        ValueError: no adapter of that name is loaded.
    """
    _require(transformer, [name])
    if len(_loaded(transformer)) == 1:
        transformer.unload_lora()
    else:
        transformer.delete_adapters(name)


def _loaded(transformer: ACEStepTransformer2DModel) -> list[str]:
    return list(getattr(transformer, "peft_config", None) or ())


def _require(transformer: ACEStepTransformer2DModel, names: Collection[str]) -> None:
    loaded = _loaded(transformer)
    if unknown := [name for name in names if name not in loaded]:
        raise ValueError(f"no LoRA is called {', '.join(unknown)}: loaded are {', '.join(loaded) or 'none'}")


def _lora_layers(transformer: ACEStepTransformer2DModel) -> Iterator["LoraLayer"]:
    from peft.tuners.lora import LoraLayer

    return (module for module in transformer.modules() if isinstance(module, LoraLayer))


def _read(transformer: ACEStepTransformer2DModel, path: Path) -> tuple[_Factors, dict[str, Any]]:
    """A file's factors, on the transformer's device and in its dtype, and peft's arguments for them."""
    file = _weight_file(path)
    with open_weights(file) as weights:
        factors = {
            layer: {
                factor: weights.get_tensor(key).to(transformer.device, transformer.dtype)
                for factor, key in pair.items()
            }
            for layer, pair in _keys_by_layer(weights.keys(), file).items()
        }
        stored = _stored_config(file, weights.metadata() or {})
    _check_fit(transformer, factors, file)
    return factors, _peft_config(factors, stored, file)


def _inject(transformer: ACEStepTransformer2DModel, name: str, factors: _Factors, config: Mapping[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several at once are intended
        transformer.load_lora_adapter(
            {f"{layer}.lora_{factor}.weight": pair[factor] for layer, pair in factors.items() for factor in pair},
            prefix=None,
            adapter_name=name,
            metadata=dict(config),
            low_cpu_mem_usage=True,
        )


def _weight_file(path: Path) -> Path:
    if path.is_dir():
        for name in (_PEFT_WEIGHTS, LORA_WEIGHT_NAME_SAFE):
            if (path / name).is_file():
                return path / name
        raise missing_weights(path, f"{_PEFT_WEIGHTS} or {LORA_WEIGHT_NAME_SAFE}")
    if not path.is_file():
        raise CheckpointProblem(f"{path} does not exist: give a LoRA's safetensors file or its folder")
    return path


def _keys_by_layer(keys: Collection[str], file: Path) -> dict[str, dict[str, str]]:
    """Layer -> `A` and `B` -> key in the file; the formats differ only in their prefixes."""
    layers: dict[str, dict[str, str]] = {}
    for key in keys:
        match = _KEY.fullmatch(key)
        if not match:
            raise CheckpointProblem(
                f"{file} has {key}, which is not a lora_A or lora_B weight: convert it to a plain LoRA of peft"
            )
        layers.setdefault(match["layer"], {})[match["factor"]] = key
    if single := [layer for layer, pair in layers.items() if len(pair) < 2]:
        raise CheckpointProblem(f"{file} has only one of lora_A and lora_B for {first_few(single)}: export it again")
    if not layers:
        raise CheckpointProblem(f"{file} is empty: export it again")
    return layers


def _stored_config(file: Path, metadata: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The configuration stored with the weights; None if diffusers stored none."""
    if file.name == _PEFT_WEIGHTS:
        return read_json(file.with_name(_PEFT_CONFIG))
    if LORA_ADAPTER_METADATA_KEY not in metadata:
        return None
    try:
        content = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
        return {name.removeprefix("transformer."): value for name, value in content.items()}
    except (ValueError, AttributeError) as problem:
        key = LORA_ADAPTER_METADATA_KEY
        raise CheckpointProblem(f"{file}: {key} is not a JSON object: export it again") from problem


def _check_fit(transformer: ACEStepTransformer2DModel, factors: _Factors, file: Path) -> None:
    """Require every adapted layer to be one of the transformer's, with factors of its size."""
    modules = {name: getattr(module, "base_layer", module) for name, module in transformer.named_modules()}
    layers = {name: module for name, module in modules.items() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)}
    if unknown := [name for name in factors if name not in layers]:
        raise CheckpointProblem(
            f"{file}: this transformer has no layer {first_few(unknown)}: the LoRA was trained for another model"
        )
    wrong = []
    for name, pair in factors.items():
        rank = max([1, *pair["A"].shape[:1]])
        expected = dict(zip("AB", _shapes(layers[name], rank), strict=True))
        for factor, tensor in pair.items():
            if list(tensor.shape) != expected[factor]:
                wrong.append(f"{name}.lora_{factor} is {list(tensor.shape)}, not {expected[factor]}")
    if wrong:
        raise CheckpointProblem(f"{file}: {first_few(wrong)}: the LoRA was trained for another model")
    damaged = [
        f"{name}.lora_{factor}"
        for name, pair in factors.items()
        for factor, tensor in pair.items()
        if not is_finite(tensor)
    ]
    if damaged:
        raise CheckpointProblem(f"{file}: {first_few(damaged)} hold NaN or infinity: take an earlier export")


def _shapes(layer: nn.Linear | nn.Conv1d | nn.Conv2d, rank: int) -> tuple[list[int], list[int]]:
    """Shapes of A and B for a layer."""
    if isinstance(layer, nn.Linear):
        return [rank, layer.in_features], [layer.out_features, rank]
    ones = [1] * len(layer.kernel_size)
    return [rank, layer.in_channels, *layer.kernel_size], [layer.out_channels, rank // layer.groups, *ones]


def _peft_config(factors: _Factors, stored: Mapping[str, Any] | None, file: Path) -> dict[str, Any]:
    """Arguments of peft's `LoraConfig`: layers and ranks from the factors, the rest as stored."""
    ranks: dict[str, float] = {layer: len(pair["A"]) for layer, pair in factors.items()}
    alphas = ranks
    if stored is not None:
        alphas = _of_layers(stored, "lora_alpha", "alpha_pattern", ranks, file)
        if wrong := [
            f"{layer} has rank {ranks[layer]}, not {rank}"
            for layer, rank in _of_layers(stored, "r", "rank_pattern", ranks, file).items()
            if rank != ranks[layer]
        ]:
            raise CheckpointProblem(f"{file} does not fit its configuration: {first_few(wrong)}: export it again")
    rank, rank_pattern = _common_and_rest(ranks)
    alpha, alpha_pattern = _common_and_rest(alphas)
    return {
        "r": rank,
        "rank_pattern": rank_pattern,
        "lora_alpha": alpha,
        "alpha_pattern": alpha_pattern,
        "use_rslora": bool(stored and stored.get("use_rslora")),
        "target_modules": list(factors),
    }


def _of_layers(
    stored: Mapping[str, Any], default: str, pattern: str, layers: Iterable[str], file: Path
) -> dict[str, float]:
    """Layer -> number: from the pattern that matches its name, else the default."""
    from peft.utils.other import get_pattern_key

    patterns = stored.get(pattern) or {}
    values: dict[str, float] = {}
    for layer in layers:
        value: Any = patterns.get(get_pattern_key(list(patterns), layer), stored.get(default))
        values[layer] = value
        if not isinstance(value, int | float) or not isfinite(value):
            raise CheckpointProblem(
                f"{file}: {default} is {value} in its configuration: write the number it was trained with"
            )
    return values


def _common_and_rest(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The most common value, and layer (as a regular expression) -> value for those that differ."""
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {f"^{re.escape(layer)}": value for layer, value in values.items() if value != common}
