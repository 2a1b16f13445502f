"""How much memory `convert folder` takes for each file: peak of a process, at two numbers of files.

    python scripts/convert_memory.py --files 200000

The files are 2 x 2 pixels and share their content by hard links, so that a disk has room for them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

_LINKS = 10_000  # to one file; file systems allow some ten thousands
_CONVERT = (
    "import resource, sys; from hbr_fast import convert; "
    "data = convert('folder', sys.argv[2], root=sys.argv[1], size=(2, 2), mode='gray'); "
    "print(len(data.train) + len(data.test), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert half of the files and all of them, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000, help="how many; default 200,000")
    files = parser.parse_args(argv).files
    if files < 20:
        parser.error(f"--files must be at least 20, got {files}")
    few, many = peak(files // 2), peak(files)
    growth = (many - few) / (files - files // 2)
    print(
        f"{files // 2:,} files: {few / 1e6:.1f} MB, {files:,} files: {many / 1e6:.1f} MB at the most: "
        f"{growth:.0f} bytes a file"
    )


def peak(files: int) -> int:
    """Bytes of memory that a process takes at the most to convert so many files."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                (root / split / name).mkdir(parents=True)
        for number in range(files):
            if number % _LINKS == 0:
                content = Path(scratch) / f"{number}.png"
                pixels = Image.new("L", (2, 2), number // _LINKS)
                pixels.putpixel((0, 0), 255)
                pixels.save(content)
            split, name = ("test", "train")[number % 10 > 1], ("cat", "dog")[number % 2]
            os.link(content, root / split / name / f"a-photograph-with-a-long-name-{number:08d}.png")
        ran = subprocess.run(
            [sys.executable, "-c", _CONVERT, root, Path(scratch) / "out.hbr"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    converted, most = map(int, ran.stdout.split())
    assert converted == files
    return most


if __name__ == "__main__":
    main()
