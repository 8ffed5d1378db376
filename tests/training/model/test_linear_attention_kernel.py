"""The Triton kernels: in Triton's interpreter, through Triton's compiler, and on a GPU where there is one."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.support.linear_attention_cases import CASES, LONG_CASES, Case, errors, unchanged_by_compiling
from training.model import linear_attention_kernel as kernel
from training.model.linear_attention import EPS

# Both sides round their output, bfloat16 to 2^-8; the gradients are sums of such rounded numbers.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-6}
SHARED_MEMORY_OF_A_SMALL_GPU = 99 * 1024

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="THE REAL KERNEL WAS NOT RUN: no CUDA device")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    program = [sys.executable, "-m", "tests.support.linear_attention_cases"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_interpreted_kernels_compute_what_torch_computes(interpreted, case: Case):
    found = interpreted["errors"][case.name]
    assert found.keys() == {"output", "query", "key", "value"}
    assert max(found.values()) < TOLERANCE[case.dtype], found


def test_the_operator_goes_through_torch_compile(interpreted):
    assert interpreted["unchanged_by_compiling"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("program", ["_sum_kernel", "_read_kernel"])
def test_kernels_compile_for_gpus_of_little_shared_memory(program, capability):
    """Down to machine code, which needs no GPU."""
    function = getattr(kernel, program)
    constants = {"masked": True, "size": 128, "block": kernel._BLOCK, "precision": "tf32", "eps": EPS}
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    types = dict.fromkeys(function.arg_names, "*fp32")
    types |= {name: "*bf16" for name in ("query", "key", "value", "out") if name in types}
    types |= {name: "i32" for name in ("frames", "heads", "length") if name in types}
    types |= {"mask": "*u8"} | dict.fromkeys(constants, "constexpr")
    options = {"num_warps": 8, "num_stages": 1}
    source = ASTSource(function, types, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED_MEMORY_OF_A_SMALL_GPU


@pytest.mark.parametrize(
    ("dtype", "size", "taken"), [("bfloat16", 128, True), ("float32", 48, False), ("float64", 64, False)]
)
def test_only_sizes_and_dtypes_of_the_kernels_are_taken(dtype, size, taken):
    assert kernel.takes(torch.empty(1, 1, 1, size, dtype=getattr(torch, dtype))) is taken


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("case", CASES + LONG_CASES, ids=lambda case: case.name)
def test_kernels_on_a_gpu_compute_what_torch_computes(case: Case):
    found = errors(case, "cuda")
    tolerance = 1e-4 if case.dtype == torch.float32 else TOLERANCE[case.dtype]
    assert max(found.values()) < tolerance, found


@pytest.mark.gpu
@needs_gpu
def test_the_operator_goes_through_torch_compile_on_a_gpu():
    assert unchanged_by_compiling(CASES[4], "cuda")
