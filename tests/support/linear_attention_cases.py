"""How far the Triton kernels of linear attention are from PyTorch's own operations, case by case.

As a program it prints the errors as JSON: Triton's interpreter is chosen by the environment before Triton is imported,
so that it needs a process of its own.
"""

import json
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tests.support.golden_inputs import relative_error, tensor
from training.model import linear_attention_kernel as kernel
from training.model.linear_attention import attend_in_torch
from training.model.rotary import rotary_table

Attend = Callable[..., Tensor]


class Case(NamedTuple):
    batch: int
    frames: int
    heads: int
    size: int
    lengths: tuple[int, ...] | None
    dtype: torch.dtype

    @property
    def name(self) -> str:
        shape = f"{self.batch}x{self.frames}x{self.heads}x{self.size}"
        masked = "" if self.lengths is None else "-masked"
        return f"{shape}-{str(self.dtype).removeprefix('torch.')}{masked}"


CASES = [
    Case(1, 1, 1, 16, None, torch.float32),
    Case(2, 40, 3, 16, (40, 29), torch.float32),
    Case(2, 67, 2, 64, (67, 0), torch.float32),
    Case(1, 300, 1, 128, None, torch.float32),
    Case(2, 130, 2, 128, (70, 130), torch.bfloat16),
    Case(1, 129, 2, 64, None, torch.bfloat16),
    Case(2, 65, 1, 32, (65, 64), torch.float16),
]
LONG_CASES = [
    Case(1, 6460, 20, 128, None, torch.bfloat16),
    Case(4, 2584, 20, 128, (2584, 2000, 1, 0), torch.bfloat16),
    Case(2, 2584, 20, 128, (2584, 2000), torch.float32),
]


def inputs(case: Case, device: str) -> tuple:
    shape = (case.batch, case.frames, case.heads, case.size)
    projections = [tensor(f"kernel.{name}", *shape).to(device, case.dtype).requires_grad_() for name in "qkv"]
    rotary = rotary_table(torch.arange(case.frames, device=device)[None], case.size, 1e6)
    lengths = None if case.lengths is None else torch.tensor(case.lengths, device=device)
    mask = None if lengths is None else torch.arange(case.frames, device=device) < lengths[:, None]
    return *projections, rotary, mask


def results(attend: Attend, case: Case, device: str) -> list[Tensor]:
    """The output and the gradients of query, key and value under one and the same gradient of the output."""
    *projections, rotary, mask = inputs(case, device)
    out = attend(*projections, rotary, mask)
    gradients = torch.autograd.grad(out, projections, tensor("kernel.gradient", *out.shape).to(out))
    return [out.detach(), *gradients]


def errors(case: Case, device: str) -> dict[str, float]:
    """Of the output and the gradients of query, key and value, kernel against PyTorch."""
    pairs = zip(results(kernel.attend, case, device), results(attend_in_torch, case, device), strict=True)
    return dict(zip(("output", "query", "key", "value"), (relative_error(*pair) for pair in pairs), strict=True))


def unchanged_by_compiling(case: Case, device: str) -> bool:
    compiled = torch.compile(kernel.attend, fullgraph=True, backend="aot_eager")
    return all(map(torch.equal, results(compiled, case, device), results(kernel.attend, case, device)))


if __name__ == "__main__":
    found = {case.name: errors(case, "cpu") for case in CASES}
    json.dump({"errors": found, "unchanged_by_compiling": unchanged_by_compiling(CASES[1], "cpu")}, sys.stdout)
