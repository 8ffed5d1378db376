import copy

import pytest
import torch
from torch import Tensor, nn

from tests.training.model.test_transformer import CONFIG, conditions, latents
from training.checkpoints.int8 import Int8Layer, quantize
from training.model import ACEStepTransformer2DModel


@pytest.fixture(scope="module")
def model() -> ACEStepTransformer2DModel:
    """As wide as its weights must be to outweigh what stays; released initialisation."""
    torch.manual_seed(0)
    sizes = {"inner_dim": 256, "attention_head_dim": 64, "lyric_hidden_size": 64, "lyric_encoder_vocab_size": 60}
    return ACEStepTransformer2DModel.from_config(CONFIG | sizes).eval()


def small_in_int8(model: ACEStepTransformer2DModel) -> ACEStepTransformer2DModel:
    quantized = copy.deepcopy(model)
    quantize(quantized, smallest=2**12)
    return quantized


def distance(computed: Tensor, exact: Tensor) -> float:
    return float((computed - exact).norm() / exact.norm())


@torch.inference_mode()
def test_velocity_of_a_random_transformer_hardly_changes(model):
    exact = model(**conditions(), **latents()).sample
    computed = small_in_int8(model)(**conditions(), **latents()).sample
    assert 0 < distance(computed, exact) < 0.02


def test_weights_weigh_half_of_bfloat16(model):
    def size(module: nn.Module) -> int:
        return sum(value.nbytes for value in module.state_dict().values())

    half = copy.deepcopy(model).to(torch.bfloat16)
    quantized = small_in_int8(half)
    layers = [module for module in quantized.modules() if isinstance(module, Int8Layer)]
    assert sum(layer.weight.numel() for layer in layers) > 0.95 * sum(value.numel() for value in model.parameters())
    assert size(quantized) < 0.53 * size(half)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", [nn.Linear(96, 40), nn.Conv1d(96, 40, 1, bias=False), nn.Conv2d(96, 40, 1)])
def test_a_layer_stays_within_half_a_step_of_each_weight(layer, dtype):
    layer = copy.deepcopy(layer).to(dtype)
    quantized = Int8Layer(layer)
    step = layer.weight.float().flatten(1).abs().amax(1) / 127
    rounded = quantized.weight.float() * quantized.scale.float()
    error = (rounded - layer.weight.float()).flatten(1).abs().amax(1)
    assert (error <= 0.51 * step).all()

    x = torch.randn({2: (3, 96), 3: (2, 96, 7), 4: (2, 96, 1, 7)}[layer.weight.ndim], dtype=dtype)
    assert quantized(x).dtype == dtype
    assert distance(quantized(x).float(), layer(x).float()) < 0.02


def test_other_layers_stay():
    model = nn.Sequential(nn.Embedding(64, 64), nn.Conv1d(64, 64, 3), nn.Conv1d(64, 64, 1, groups=4), nn.Linear(4, 4))
    before = list(model)
    quantize(model, smallest=17)
    assert list(model) == before
    quantize(model, smallest=16)
    assert [type(layer) for layer in model] == [nn.Embedding, nn.Conv1d, nn.Conv1d, Int8Layer]


def test_a_channel_of_zeros_stays_zero():
    layer = nn.Linear(8, 2)
    nn.init.zeros_(layer.weight)
    assert torch.equal(Int8Layer(layer)(torch.ones(1, 8)), layer.bias[None])


@torch.inference_mode()
def test_moving_to_another_dtype_keeps_the_integers(model):
    quantized = small_in_int8(model).to(torch.bfloat16)
    weights = [module.weight for module in quantized.modules() if isinstance(module, Int8Layer)]
    assert weights
    assert all(weight.dtype == torch.int8 for weight in weights)
