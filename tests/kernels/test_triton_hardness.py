"""The recording kernels compiled ahead of time for real devices: nothing spills, each logit is read once."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hbr_fast.kernels import launch
from hbr_fast.kernels.hardness import layout, triton_cross_entropy, triton_record
from kernels.ptx import of_new_compilers, spills_nothing

CAPABILITIES = pytest.mark.parametrize("capability", [80, 90, 100])  # A100, H100, B200


SIZES = pytest.mark.parametrize(
    ("classes", "logits"), [(10, "*fp32"), (100, "*bf16"), (1000, "*fp32"), (100_000, "*bf16")]
)


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int) -> str:
    """PTX of a kernel; arguments not in `types` or `constants` are int32."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    return str(triton.compile(source, target=target, options={"num_warps": launch.HARDNESS_WARPS}).asm["ptx"])


def observe(classes: int, logits: str, capability: int) -> str:
    rows, block = launch.hardness_tile(classes)
    # A stride of 1 is compiled in, as Triton does at a launch.
    constants = {"MASK": layout.ALL_COLUMNS, "EXPONENTIALS": True, "ROWS": rows, "BLOCK": block, "logits_c": 1}
    pointers = {"logits": logits, "labels": "*i64", "ids": "*i64"}
    results = {"observed": "*fp64", "outcomes": "*i64", "states": "*i64"}
    return compiled(triton_record.observe_kernel, {**pointers, **results}, constants, capability)


def observe_with_loss(classes: int, logits: str, capability: int, *, options: bool = True) -> str:
    """With class weights and label smoothing, or without them (`options`)."""
    rows, block = launch.hardness_tile(classes)
    constants = {"MASK": layout.ALL_COLUMNS, "SMOOTHED": options, "WEIGHTED": options, "WHOLE": classes <= block}
    constants |= {"ROWS": rows, "BLOCK": block, "logits_c": 1}
    pointers = {"logits": logits, "labels": "*i64", "ids": "*i64", "weights": "*fp32", "weighed": "*fp64"}
    results = {"observed": "*fp64", "outcomes": "*i64", "losses": "*fp64", "gradient": "*fp32", "smoothing": "fp32"}
    kernel = triton_cross_entropy.observe_with_loss_kernel
    return compiled(kernel, {**pointers, **results}, constants, capability)


@of_new_compilers
@CAPABILITIES
@SIZES
def test_observe_kernel_compiles_without_spills(classes: int, logits: str, capability: int, tmp_path: Path) -> None:
    assert spills_nothing(observe(classes, logits, capability), tmp_path)


@CAPABILITIES
def test_accumulate_kernel_compiles_without_spills(capability: int, tmp_path: Path) -> None:
    pointers = {"sorted_states": "*i64", "order": "*i64", "observed": "*fp64", "outcomes": "*i64", "ids": "*i64"}
    state = {"sums": "*fp64", "counters": "*i32", "status": "*i64"}
    constants = {"BLOCK": launch.ACCUMULATE_BLOCK}
    ptx = compiled(triton_record.accumulate_kernel, {**pointers, **state}, constants, capability)
    assert spills_nothing(ptx, tmp_path)


@CAPABILITIES
@SIZES
def test_recorded_loss_kernel_compiles_without_spills(
    classes: int, logits: str, capability: int, tmp_path: Path
) -> None:
    assert spills_nothing(observe_with_loss(classes, logits, capability), tmp_path)


@CAPABILITIES
@pytest.mark.parametrize("options", [False, True])
def test_weigh_kernel_compiles_without_spills(options: bool, capability: int, tmp_path: Path) -> None:
    types = {"labels": "*i64", "weights": "*fp32", "weighed": "*fp64"}
    constants = {"WEIGHTED": options, "MEAN": options, "BLOCK": launch.LABEL_BLOCK}
    ptx = compiled(triton_cross_entropy.weigh_kernel, types, constants, capability)
    assert spills_nothing(ptx, tmp_path)


def moved(ptx: str, instruction: str, size: int) -> int:
    """Bytes that one thread loads or stores in words of `size` bytes."""
    words = re.findall(rf"{instruction}\.global(?:\.v(\d))?\.b(\d+)", ptx)
    return sum(int(vector or 1) * size for vector, bits in words if int(bits) == 8 * size)


@of_new_compilers
@pytest.mark.parametrize("classes", [10, 1000, 2048, 100_000])
@pytest.mark.parametrize(("logits", "size"), [("*fp32", 4), ("*bf16", 2)])
def test_observe_kernel_reads_each_logit_once(classes: int, logits: str, size: int) -> None:
    # Bytes of this width that one thread loads: its share of the tile, and the logit of the row's own class.
    rows, block = launch.hardness_tile(classes)
    share = max(1, rows * block // (32 * launch.HARDNESS_WARPS)) * size
    own = moved(observe(classes, logits, 90), "ld", size) - share
    assert 0 < own <= size * max(1, rows // 4), (own, share)


@of_new_compilers
@pytest.mark.parametrize(("classes", "times"), [(10, 1), (1000, 1), (2048, 1), (2049, 2), (100_000, 2)])
def test_recorded_loss_kernel_reads_short_rows_once(classes: int, times: int) -> None:
    rows, block = launch.hardness_tile(classes)
    share = max(1, rows * block // (32 * launch.HARDNESS_WARPS)) * 2
    own = moved(observe_with_loss(classes, "*bf16", 90, options=False), "ld", 2) - times * share
    assert 0 < own <= 2 * max(1, rows // 4), (own, share)


def test_hardness_launch_sizes_are_pinned() -> None:
    tiles = {2: (256, 2), 10: (32, 16), 100: (4, 128), 512: (1, 512), 1000: (1, 1024), 4097: (1, 2048)}
    assert {classes: launch.hardness_tile(classes) for classes in tiles} == tiles
    assert (launch.HARDNESS_WARPS, launch.ACCUMULATE_BLOCK, launch.LABEL_BLOCK) == (4, 64, 1024)


def test_operators_do_not_import_triton() -> None:
    room = "hbr_fast.kernels.hardness"
    code = f"import sys; import {room}.ops; assert '{room}.triton_record' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
