"""Resident memory over epochs of encoded pictures: python scripts/epoch_memory.py photos.hbr --size 224

Fails if it grows by more than 64 MB from the end of the first quarter to the end, beside the 256 MiB of shards that are
mapped at a time. A dataset should be larger than that.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hbr_fast import Augment, Loader, open_dataset
from hbr_fast.data.shards import RELEASE_BYTES

ALLOWED = RELEASE_BYTES + 64 * 10**6


def resident() -> int:
    """Bytes of memory of this process, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(argv: Sequence[str] | None = None) -> None:
    """Take all batches, and compare memory early with memory later."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a directory or a URL")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args(argv)
    split = open_dataset(options.dataset).train
    augment = Augment(flip=0.5, resized_crop=(0.08, 1.0))
    loader = Loader(split, size=options.size, augment=augment, batch_size=min(options.batch_size, len(split)))
    found = []
    for epoch in range(options.epochs):
        for batch in loader.epoch(epoch):
            del batch
            found.append(resident())
    early, later = max(found[: max(1, len(found) // 4)]), max(found)
    print(
        f"{split.store.nbytes * options.epochs / 1e6:,.0f} MB of pictures in {len(found):,} batches: resident memory "
        f"{early / 1e6:,.0f} MB at the most in the first quarter, {later / 1e6:,.0f} MB in all"
    )
    if later - early > ALLOWED:
        sys.exit(f"error: memory grew by {(later - early) / 1e6:,.0f} MB, more than {ALLOWED / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
