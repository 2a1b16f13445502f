"""The Triton kernels without a GPU: run in Triton's interpreter, and compiled ahead of time for real devices."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hbr_fast.kernels import launch
from hbr_fast.kernels.images import triton_batch
from hbr_fast.kernels.orders import triton_bijections
from kernels.ptx import VERSION, of_new_compilers, spills_nothing

TESTS = Path(__file__).parent.parent


# One process per file: each takes a minute or more on a busy machine.
@pytest.mark.skipif(
    VERSION < (3, 8) and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason=f"the interpreter of Triton {triton.__version__} needs NumPy < 2.4",
)
@pytest.mark.parametrize("file", sorted((TESTS / "interpreted").glob("test_*.py")), ids=lambda file: file.stem)
def test_triton_interpreter_matches_reference(file: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout or re.search(r"\[100%\]", done.stdout)


@pytest.mark.parametrize("count", [1, 511, 512, 513, 10**9])
def test_order_grid_covers_every_row_once(count: int) -> None:
    programs = launch.order_grid(count)
    assert (programs - 1) * launch.ORDER_BLOCK < count <= programs * launch.ORDER_BLOCK


def test_order_launch_sizes_are_pinned() -> None:
    assert (launch.ORDER_BLOCK, launch.ORDER_WARPS, launch.order_grid(1_281_167)) == (512, 4, 2503)


@pytest.mark.parametrize(
    ("length", "block", "programs_of_128"),
    [
        (1, 128, 128),
        (128, 128, 128),
        (129, 256, 128),
        (784, 1024, 128),  # 1x28x28
        (1024, 1024, 128),  # a plane of 3x32x32
        (3072, 1024, 384),  # 3x32x32, channels last
        (4096, 1024, 512),
        (50_176, 1024, 6272),  # a plane of 3x224x224
        (150_528, 1024, 18_816),
    ],
)
def test_image_launch_sizes_are_pinned(length: int, block: int, programs_of_128: int) -> None:
    assert launch.image_block(length) == block
    assert launch.image_grid(128, length) == programs_of_128
    assert launch.image_grid(0, length) == 0


CAPABILITIES = pytest.mark.parametrize("capability", [80, 90, 100])  # A100, H100, B200


@of_new_compilers
@CAPABILITIES
@pytest.mark.parametrize("rounds", [12, 24])
def test_order_kernel_compiles_without_spills(capability: int, rounds: int, tmp_path: Path) -> None:
    numbers = dict.fromkeys(("start", "stride", "count", "length", "a", "b"), "i64")
    ptx = compiled(
        triton_bijections.bijection_kernel,
        {"out": "*i64", "keys": "*i64", **numbers},
        {"ROUNDS": rounds, "BLOCK": launch.ORDER_BLOCK},
        capability,
        launch.ORDER_WARPS,
    )
    assert spills_nothing(ptx, tmp_path)


CROP = {"PAD": 4}
EVERYTHING_BUT_RESIZED = {"ALTERNATING": True, "PAD": 4, "PADDING": "reflect", "CUTOUT": 8, "MIX": True, "KEYED": True}
RESIZED = {"RESIZED": True, "CUTOUT": 8, "MIX": True}


@CAPABILITIES
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((3, 32, 32), "fp32", {"FLIP": False}),
        ((3, 32, 32), "fp32", CROP),
        ((3, 32, 32), "fp16", EVERYTHING_BUT_RESIZED),
        ((1, 28, 28), "bf16", CROP),
        ((3, 224, 224), "bf16", RESIZED),
    ],
)
def test_image_kernel_stores_16_bytes_without_spills(
    shape: tuple[int, int, int], dtype: str, options: dict[str, Any], channels_last: bool, capability: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    ptx = compiled_images(shape, dtype, options, channels_last, capability)
    assert spills_nothing(ptx, tmp_path)
    if dtype != "fp32":
        assert f"cvt.rn.{dtype.replace('p', '')}x2.f32" in ptx, "rounds to nearest, two values at once"
    # Eight bytes are a label or an id.
    assert set(re.findall(r"st\.global\S*", ptx)) == {"st.global.v4.b32", "st.global.b64"}


def test_image_kernel_stores_odd_sizes_value_by_value() -> None:
    # Their images are not 16-byte aligned: the test above would see this code if stores were not wide.
    assert "st.global.v4.b32" not in compiled_images((3, 33, 31), "fp32", CROP, False, 90)


def compiled_images(
    shape: tuple[int, int, int], dtype: str, options: dict[str, Any], channels_last: bool, capability: int
) -> str:
    channels, height, width = shape
    length = height * width * (channels if channels_last else 1)
    constants: dict[str, Any] = dict(CHANNELS=channels, HEIGHT=height, WIDTH=width, CHANNELS_LAST=channels_last)  # noqa: C408
    constants |= dict(FLIP=True, ALTERNATING=False, PAD=0, PADDING="zero", RESIZED=False, CUTOUT=0, MIX=False)  # noqa: C408
    constants |= {"KEYED": False, "BLOCK": launch.image_block(length), **options}
    types = dict.fromkeys(triton_batch.batch_kernel.arg_names, "*i64")
    types |= dict.fromkeys(("first_position", "step", "epoch", "key", "flip_below"), "i64")
    types |= dict.fromkeys(("weight_r", "level_c", "scale_c", "bias_c"), "*fp32") | {"out": f"*{dtype}"}
    # Torch's allocator gives addresses that are multiples of 16; of `out` the launch says so.
    return compiled(triton_batch.batch_kernel, types, constants, capability, launch.IMAGE_WARPS, aligned=("out",))


def compiled(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    capability: int,
    warps: int,
    *,
    aligned: tuple[str, ...] = (),
) -> str:
    """The assembly of a kernel for a compute capability."""
    source = ASTSource(
        fn=kernel,
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert len(made.asm["cubin"]) > 0
    return str(made.asm["ptx"])
