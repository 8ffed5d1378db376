"""Weights in 8 bits for inference on small cards: half the memory of bfloat16, activations as before.

Every output channel has its own scale, symmetric by its largest weight (Dettmers et al., "LLM.int8()", arXiv
2208.07339, section 2.1). A weight is multiplied out when its layer runs; PyTorch's own `_weight_int8pack_mm` does it
within the product, but is made for the few rows of text generation and, on a CPU, several times slower than this on the
hundreds of frames of a song.
"""

from collections.abc import Callable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pointwise = nn.Linear | nn.Conv1d | nn.Conv2d

_FUNCTIONS: dict[type[nn.Module], Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    nn.Linear: F.linear,
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
}
_LEAST = 1e-7  # a float16 can be as small


class Int8Layer(nn.Module):
    """A linear layer, or a convolution of kernel size 1, in 8 bits."""

    weight: Tensor  # int8 [outputs, inputs, ...]
    scale: Tensor  # of the weight's dtype before, [outputs, 1, ...]

    def __init__(self, layer: Pointwise) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scale = (weight.flatten(1).abs().amax(1) / 127).clamp(min=_LEAST).view(-1, *[1] * (weight.ndim - 1))
        scale = scale.to(layer.weight.dtype)
        self.register_buffer("weight", (weight / scale.float()).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = layer.bias
        self.function = _FUNCTIONS[type(layer)]

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes, up to the rounding of its weight."""
        return self.function(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def quantize(model: nn.Module, smallest: int = 2**20) -> None:
    """Replaces the linear layers and 1x1 convolutions of a model by `Int8Layer`, in place and for inference only.

    Norms, embeddings and layers with fewer than `smallest` weights stay: they weigh little, and the last layer's
    rounding would go straight to the output. An adapter must be fused before; none can be added after.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if _is_pointwise(child) and child.weight.numel() >= smallest:
                setattr(module, name, Int8Layer(child))


def _is_pointwise(module: nn.Module) -> TypeGuard[Pointwise]:
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        settings = {*module.kernel_size, *module.stride, module.groups}
        return type(module) in _FUNCTIONS and settings == {1} and set(module.padding) == {0}
    return type(module) is nn.Linear
