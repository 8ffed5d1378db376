import copy
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support import tiny_checkpoint
from training.checkpoints.lora import Lora, load_loras, set_scales, unload
from training.checkpoints.released_layout import CheckpointProblem, load_checkpoint, save_checkpoint
from training.model import ACEStepTransformer2DModel

ATTENTION = r".*\.(to_q|to_k|to_v|to_out\.0|linear_q|linear_v)|speaker_embedder"
PEFT, DIFFUSERS = "adapter_model.safetensors", "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def original() -> ACEStepTransformer2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return tiny_checkpoint.transformer()


@pytest.fixture
def transformer(original: ACEStepTransformer2DModel) -> ACEStepTransformer2DModel:
    return copy.deepcopy(original)


def export(transformer: nn.Module, folder: Path, seed: int, **config: Any) -> Path:
    """A random adapter in the files that peft itself writes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        arguments: dict[str, Any] = {
            "r": 4,
            "lora_alpha": 12,
            "target_modules": ATTENTION,
            "init_lora_weights": False,
        } | config
        get_peft_model(copy.deepcopy(transformer), LoraConfig(**arguments)).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def rap(original: ACEStepTransformer2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(original, tmp_path_factory.mktemp("rap"), seed=5)


@pytest.fixture(scope="module")
def choir(original: ACEStepTransformer2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On other layers, partly the same, at another rank."""
    return export(
        original, tmp_path_factory.mktemp("choir"), seed=6, r=2, target_modules=r".*\.(to_q|linear|point_conv\.conv)"
    )


def merged(original: nn.Module, *adapters: tuple[Path, Callable[[str], float]]) -> nn.Module:
    """The transformer with `strength(layer) * B A` added to its weights by hand."""
    merged = copy.deepcopy(original)
    for folder, strength in adapters:
        factors = load_file(folder / PEFT)
        for key in factors:
            if ".lora_A" in key:
                layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                up, down = factors[key.replace("lora_A", "lora_B")], factors[key]
                weight = merged.get_parameter(f"{layer}.weight")
                weight.data += strength(layer) * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    return merged


@torch.no_grad()
def velocity(transformer: nn.Module) -> Tensor:
    """Of two songs, whatever the transformer reads being drawn at random."""
    noise = torch.Generator().manual_seed(7)
    return transformer(
        torch.randn(2, 8, 16, 9, generator=noise),
        torch.ones(2, 9),
        torch.randn(2, 5, 32, generator=noise),
        torch.ones(2, 5),
        torch.randn(2, 16, generator=noise),
        torch.randint(1, 1000, (2, 6), generator=noise),
        torch.ones(2, 6),
        torch.tensor([300.0, 900.0]),
    ).sample


def far(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())


def test_scale_0_is_the_base_and_scale_1_is_the_merged_weights(
    original: nn.Module, transformer: ACEStepTransformer2DModel, rap: Path
) -> None:
    load_loras(transformer, [Lora(rap, "rap", scale=0.0)])
    assert torch.equal(velocity(transformer), velocity(original))
    set_scales(transformer, {"rap": 1.0})
    assert far(velocity(transformer), velocity(original)) > 0.05
    assert far(velocity(transformer), velocity(merged(original, (rap, lambda layer: 12 / 4)))) < 1e-5


def test_every_linear_layer_and_convolution_adapts(
    original: nn.Module, transformer: ACEStepTransformer2DModel, tmp_path: Path
) -> None:
    layers = [
        name
        for name, module in original.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and getattr(module, "groups", 1) == 1
    ]
    folder = export(original, tmp_path, seed=8, target_modules=layers, lora_alpha=1)
    load_loras(transformer, [Lora(folder, "all")])
    assert len(load_file(folder / PEFT)) == 2 * len(layers)
    assert far(velocity(transformer), velocity(merged(original, (folder, lambda layer: 1 / 4)))) < 1e-5


def test_ranks_and_alphas_of_single_layers_and_rank_stabilised_scales_count(
    original: nn.Module, transformer: ACEStepTransformer2DModel, tmp_path: Path
) -> None:
    folder = export(
        original,
        tmp_path,
        seed=9,
        rank_pattern={"to_q": 9},
        alpha_pattern={"to_k": 2, "0.attn.to_q": 3},
        use_rslora=True,
    )

    def strength(layer: str) -> float:
        alpha = 2 if layer.endswith("to_k") else 3 if layer.endswith("0.attn.to_q") else 12
        return alpha / (9 if layer.endswith("to_q") else 4) ** 0.5

    load_loras(transformer, [Lora(folder, "mixed")])
    assert far(velocity(transformer), velocity(merged(original, (folder, strength)))) < 1e-5


def test_adapters_add_up_each_with_its_own_scale(
    original: nn.Module, transformer: ACEStepTransformer2DModel, rap: Path, choir: Path
) -> None:
    load_loras(transformer, [Lora(rap, "rap", scale=0.5)])
    load_loras(transformer, [Lora(choir, "choir", scale=-0.25)])
    both = merged(original, (rap, lambda layer: 0.5 * 3), (choir, lambda layer: -0.25 * 6))
    assert far(velocity(transformer), velocity(both)) < 1e-5
    set_scales(transformer, {"rap": 0.0})
    assert far(velocity(transformer), velocity(merged(original, (choir, lambda layer: -0.25 * 6)))) < 1e-5
    set_scales(transformer, {"rap": 0.5})
    assert far(velocity(transformer), velocity(both)) < 1e-5


def test_unloading_restores_bit_for_bit(
    original: nn.Module, transformer: ACEStepTransformer2DModel, rap: Path, choir: Path, tmp_path: Path
) -> None:
    load_loras(transformer, [Lora(choir, "choir")])
    alone = velocity(transformer)
    load_loras(transformer, [Lora(rap, "rap")])
    codec = tiny_checkpoint.codec()
    with pytest.raises(ValueError, match="unload them"):
        save_checkpoint(tmp_path / "checkpoint", transformer=transformer, codec=codec)
    unload(transformer, "rap")
    assert torch.equal(velocity(transformer), alone)
    unload(transformer, "choir")
    assert torch.equal(velocity(transformer), velocity(original))
    assert [type(module) for module in transformer.modules()] == [type(module) for module in original.modules()]
    save_checkpoint(tmp_path / "checkpoint", transformer=transformer, codec=codec)
    assert torch.equal(velocity(load_checkpoint(tmp_path / "checkpoint").transformer), velocity(original))
    load_loras(transformer, [Lora(choir, "choir")])
    assert torch.equal(velocity(transformer), alone)


def test_all_formats_of_one_adapter_give_the_same_output(
    original: ACEStepTransformer2DModel, rap: Path, tmp_path: Path
) -> None:
    base = copy.deepcopy(original)
    load_loras(base, [Lora(rap, "rap")])
    expected = velocity(base)
    base.save_lora_adapter(tmp_path / "diffusers", adapter_name="rap")

    factors = {key.removeprefix("base_model.model."): tensor for key, tensor in load_file(rap / PEFT).items()}
    # Without a stored alpha it is the rank, so the strength goes into B.
    scaled = {f"transformer.{key}": tensor * (3 if ".lora_B" in key else 1) for key, tensor in factors.items()}
    save_file(scaled, tmp_path / "prefixed.safetensors")
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 12})}
    pipeline = {f"transformer.{key}": tensor for key, tensor in factors.items()}
    save_file(pipeline, tmp_path / "pipeline.safetensors", metadata=metadata)

    for path in (
        rap / PEFT,
        tmp_path / "diffusers",
        tmp_path / "diffusers" / DIFFUSERS,
        tmp_path / "prefixed.safetensors",
        tmp_path / "pipeline.safetensors",
    ):
        transformer = copy.deepcopy(original)
        load_loras(transformer, [Lora(path, "rap")])
        assert far(velocity(transformer), expected) < 1e-6, path


def test_adapters_take_the_dtype_of_the_transformer(
    original: nn.Module, transformer: ACEStepTransformer2DModel, rap: Path
) -> None:
    transformer.double()
    load_loras(transformer, [Lora(rap, "rap")])
    assert {parameter.dtype for parameter in transformer.parameters()} == {torch.float64}


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    factors = load_file(path)
    edit(factors)
    save_file(factors, path)


def rename(old: str, new: str) -> Callable[[Path], object]:
    def edit(factors: dict[str, Tensor]) -> None:
        for key in list(factors):
            factors[key.replace(old, new)] = factors.pop(key)

    return lambda folder: change(folder / PEFT, edit)


def replace(key: str, tensor: Tensor) -> Callable[[Path], object]:
    return lambda folder: change(folder / PEFT, lambda factors: factors.update({f"base_model.model.{key}": tensor}))


def configure(**changes: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


DAMAGES: Mapping[str, tuple[Callable[[Path], object], Iterable[str]]] = {
    "no folder": (shutil.rmtree, ["does not exist"]),
    "no weights": (lambda folder: (folder / PEFT).unlink(), [f"lacks {PEFT} or {DIFFUSERS}"]),
    "pickled": (lambda folder: (folder / PEFT).rename(folder / "adapter_model.bin"), ["adapter_model.bin", "convert"]),
    "cut off": (lambda folder: (folder / PEFT).write_bytes((folder / PEFT).read_bytes()[:-9]), [PEFT, "cut off"]),
    "empty": (lambda folder: save_file({}, folder / PEFT), ["is empty"]),
    "no configuration": (lambda folder: (folder / "adapter_config.json").unlink(), ["adapter_config.json"]),
    "another model": (rename("transformer_blocks", "double_blocks"), ["no layer double_blocks.0.attn", "more"]),
    "another kind": (rename("lora_A", "hada_w1"), ["hada_w1", "not a lora_A or lora_B"]),
    "one factor": (lambda folder: change(folder / PEFT, lambda factors: factors.popitem()), ["only one of lora_A"]),
    "another size": (
        replace("speaker_embedder.lora_A.weight", torch.ones(4, 512)),
        ["speaker_embedder.lora_A is [4, 512], not [4, 16]"],
    ),
    "no matrix": (replace("speaker_embedder.lora_A.weight", torch.tensor(1.0)), ["speaker_embedder.lora_A is []"]),
    "another rank": (configure(r=8), ["has rank 4, not 8"]),
    "no alpha": (configure(lora_alpha=None), ["lora_alpha is None"]),
    "NaN": (
        replace("speaker_embedder.lora_B.weight", torch.full((32, 4), torch.nan)),
        ["speaker_embedder.lora_B", "NaN"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused_and_the_transformer_left_alone(
    original: nn.Module, transformer: ACEStepTransformer2DModel, rap: Path, choir: Path, tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(rap, tmp_path / "rap")
    edit, words = DAMAGES[damage]
    edit(folder)
    with pytest.raises(CheckpointProblem) as problem:
        load_loras(transformer, [Lora(choir, "choir"), Lora(folder, "rap")])
    assert str(folder) in str(problem.value)
    assert [word for word in words if word not in str(problem.value)] == []
    assert transformer.state_dict().keys() == original.state_dict().keys()


def test_damaged_metadata_of_diffusers_is_refused(transformer: ACEStepTransformer2DModel, tmp_path: Path) -> None:
    factors = {"speaker_embedder.lora_A.weight": torch.ones(1, 16), "speaker_embedder.lora_B.weight": torch.ones(32, 1)}
    for content in ("{", "[]"):
        save_file(factors, tmp_path / DIFFUSERS, metadata={"lora_adapter_metadata": content})
        with pytest.raises(CheckpointProblem, match="lora_adapter_metadata is not a JSON object"):
            load_loras(transformer, [Lora(tmp_path, "rap")])


@pytest.mark.parametrize("names", [("rap", "rap"), ("choir",), ("v1.5",), ("",)])
def test_names_are_unique_and_usable(
    transformer: ACEStepTransformer2DModel, rap: Path, choir: Path, names: tuple[str, ...]
) -> None:
    load_loras(transformer, [Lora(choir, "choir")])
    with pytest.raises(CheckpointProblem, match="choose another name"):
        load_loras(transformer, [Lora(rap, name) for name in names])


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(
    transformer: ACEStepTransformer2DModel, rap: Path
) -> None:
    with pytest.raises(ValueError, match="no LoRA is called rap: loaded are none"):
        unload(transformer, "rap")
    load_loras(transformer, [Lora(rap, "rap")])
    with pytest.raises(ValueError, match="no LoRA is called choir: loaded are rap"):
        set_scales(transformer, {"choir": 1.0})
