"""Open a dataset of millions of encoded pictures: python scripts/open_large.py photos.hbr --pictures 14000000

The pictures are those of a real dataset, again and again: only the index and the labels are large. Prints the size of
the index on the disk, the time to open it in a new process, and the memory that opening and one batch take there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hbr_fast.data.dataset import fingerprint_of, open_dataset
from hbr_fast.data.meta_json import META
from hbr_fast.files import linked, read_json, sha256_of_file
from hbr_fast.json_schema import write_sealed_json

CHUNK = 2**20

MEASURE = """
import sys, time
from pathlib import Path
import hbr_fast
from hbr_fast.data.dataset import open_dataset

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

before, begin = resident(), time.perf_counter()
dataset = open_dataset(sys.argv[1])
seconds = time.perf_counter() - begin
print(f"opened {len(dataset.train):,} pictures in {seconds:.2f} s and {resident() - before:.0f} MB of memory")
store = dataset.train.at_size(224).store
store.gather([0])  # compiles or loads the decoder
loaded, begin = resident(), time.perf_counter()
store.gather(range(len(store) // 2, len(store) // 2 + 64))
print(f"64 pictures from the middle in {time.perf_counter() - begin:.2f} s with {resident() - loaded:.0f} MB more")
"""


def main() -> None:
    """Make the dataset, open it, remove it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--pictures", type=int, default=14_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dataset.resolve().parent) as scratch:
        large = Path(scratch) / "large.hbr"
        enlarge(options.dataset, large, options.pictures)
        print(f"index: {(large / 'train.index.npy').stat().st_size / 1e6:,.0f} MB on the disk")
        subprocess.run([sys.executable, "-c", MEASURE, str(large)], check=True)


def enlarge(path: Path, out: Path, pictures: int) -> None:
    """Write a dataset whose train split has the pictures of another one, repeated."""
    dataset, meta = open_dataset(path), read_json(path / META)
    entry = meta["splits"]["train"]
    for part in ("sources", "source_offsets"):
        del meta["files"][entry["files"].pop(part)]
    entry |= {"samples": pictures, "sources": [["train", pictures]]}
    out.mkdir()
    for name in meta["files"]:
        linked(path / name, out / name)
    store: Any = dataset.train.store
    for part, rows in (("index", store.index), ("labels", dataset.train.labels)):
        name = entry["files"][part]
        (out / name).unlink()
        target = np.lib.format.open_memmap(out / name, "w+", rows.dtype, (pictures,))
        for start in range(0, pictures, CHUNK):
            target[start : start + CHUNK] = rows[np.arange(start, min(start + CHUNK, pictures)) % len(rows)]
        target.flush()
        meta["files"][name] = {"sha256": sha256_of_file(out / name), "bytes": (out / name).stat().st_size}
    meta["fingerprint"] = fingerprint_of(meta["files"], meta["classes"])
    write_sealed_json(out / META, meta)


if __name__ == "__main__":
    main()
