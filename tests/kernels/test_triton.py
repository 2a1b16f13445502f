"""The Triton kernels without a GPU: run in Triton's interpreter, and compiled ahead of time for real devices."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hbr_fast.kernels import launch, triton_orders

TESTS = Path(__file__).parent.parent
ASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def test_parity_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "interpreted")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout or re.search(r"\[100%\]", done.stdout)


@pytest.mark.parametrize("count", [1, 511, 512, 513, 10**9])
def test_the_order_grid_covers_every_row_once(count: int) -> None:
    programs = launch.order_grid(count)
    assert (programs - 1) * launch.ORDER_BLOCK < count <= programs * launch.ORDER_BLOCK


def test_launch_sizes_are_pinned() -> None:
    assert (launch.ORDER_BLOCK, launch.ORDER_WARPS, launch.order_grid(1_281_167)) == (512, 4, 2503)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("rounds", [12, 24])
def test_the_order_kernel_compiles_without_spills(capability: int, rounds: int, tmp_path: Path) -> None:
    numbers = dict.fromkeys(("start", "stride", "count", "length", "a", "b"), "i64")
    source = ASTSource(
        fn=triton_orders.bijection_kernel,
        signature={"out": "*i64", "keys": "*i64", **numbers, "ROUNDS": "constexpr", "BLOCK": "constexpr"},
        constexprs={"ROUNDS": rounds, "BLOCK": launch.ORDER_BLOCK},
    )
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": launch.ORDER_WARPS})
    assert len(compiled.asm["cubin"]) > 0
    assert "0 bytes spill stores, 0 bytes spill loads" in assembler_report(compiled.asm["ptx"], tmp_path)


def assembler_report(ptx: str, folder: Path) -> str:
    """What the assembler in Triton's wheel says of registers and spills."""
    (folder / "kernel.ptx").write_text(ptx)
    named = re.search(r"^\.target (\S+?)(,|$)", ptx, flags=re.MULTILINE)
    assert named is not None
    newest = ASSEMBLER / "ptxas-blackwell"
    assembler = newest if newest.exists() else ASSEMBLER / "ptxas"
    command = [str(assembler), "-v", f"--gpu-name={named[1]}", str(folder / "kernel.ptx"), "-o", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr
