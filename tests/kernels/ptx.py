"""Inspect the code that Triton's compiler and the assembler in its wheel generate."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import triton

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
VERSION = tuple(int(number) for number in triton.__version__.split(".")[:2])

# Generated code is checked only for compilers as new as CI's: 3.6, which comes with torch 2.11, keeps
# four bytes of two kernels in memory and reads a row's own logit once more.
of_new_compilers = pytest.mark.skipif(VERSION < (3, 8), reason=f"Triton {triton.__version__} compiles otherwise")


def spills_nothing(ptx: str, folder: Path) -> bool:
    """Whether a kernel keeps all its values in registers."""
    (folder / "kernel.ptx").write_text(ptx)
    named = re.search(r"^\.target (\S+?)(,|$)", ptx, flags=re.MULTILINE)
    assert named is not None
    newest = BINARIES / "ptxas-blackwell"
    assembler = newest if newest.exists() else BINARIES / "ptxas"
    command = [str(assembler), "-v", f"--gpu-name={named[1]}", str(folder / "kernel.ptx"), "-o", os.devnull]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "bytes spill stores" in report
    return " 0 bytes spill stores, 0 bytes spill loads" in report
