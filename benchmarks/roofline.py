"""Upper bounds for the GPU kernels: a device's memory bandwidth over the bytes that must move.

    python benchmarks/roofline.py            # prints the tables of docs/roofline.md
    python benchmarks/roofline.py --write    # writes them into it

No GPU is needed: nothing is measured here. `scripts/gpu_check.sh` measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hbr_fast.kernels.hardness import layout

DOC = Path(__file__).parent.parent / "docs" / "roofline.md"
START, END = "<!-- tables: benchmarks/roofline.py -->", "<!-- end of tables -->"

# Memory bandwidth from the manufacturers' data sheets, bytes a second.
DEVICES = {"A100 80GB SXM": 2.039e12, "H100 SXM": 3.35e12, "B200": 8.0e12}
IMAGES = {"1x28x28": 784, "3x32x32": 3072, "3x64x64": 12288, "3x224x224": 150528}  # values an image
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CLASSES = (10, 100, 1000)
INT64 = 8


def image_bytes(values: int, dtype: str) -> int:
    """Bytes of one image: read as uint8, written as `dtype`; address read, label and id read and written."""
    return values + values * BYTES[dtype] + INT64 + 2 * INT64 + 2 * INT64


def recording_bytes(classes: int, dtype: str) -> int:
    """Bytes of one row: logits, label and id read once; its sample's state read and written."""
    state = 8 * layout.SUM_COLUMNS + 4 * layout.COUNTER_COLUMNS
    return classes * BYTES[dtype] + 2 * INT64 + 2 * state


def tables() -> str:
    """The tables as Markdown."""
    images = [
        (shape, dtype, image_bytes(values, dtype))
        for shape, values in IMAGES.items()
        for dtype in ("float32", "bfloat16")
    ]
    rows = [(f"{classes} classes", dtype, recording_bytes(classes, dtype)) for classes in CLASSES
            for dtype in ("float32", "bfloat16")]  # fmt: skip
    return "\n\n".join(
        [
            "### Making a batch: images a second at the memory's speed",
            _table("image", "images/s", images),
            "### Recording hardness: rows a second at the memory's speed",
            _table("logits", "rows/s", rows),
        ]
    )


def _table(what: str, unit: str, rows: Sequence[tuple[str, str, int]]) -> str:
    head = [what, "type", "bytes", *(f"{device}: {unit}" for device in DEVICES)]
    lines = [head, ["---"] * len(head)]
    for name, dtype, size in rows:
        lines.append(
            [name, dtype, f"{size:,}", *(f"{bandwidth / size / 1e6:,.0f} M" for bandwidth in DEVICES.values())]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables or write them into the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/roofline.md")
    if not parser.parse_args(arguments).write:
        print(tables())
        return
    text = DOC.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    DOC.write_text(f"{before}{START}\n{tables()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
