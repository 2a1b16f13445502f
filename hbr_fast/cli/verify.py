"""`hbr-fast verify`."""

from __future__ import annotations

from hbr_fast.cli.options import DatasetPath


def verify(dataset: DatasetPath) -> None:
    """Re-read a dataset and check every checksum, shape, range and label.

    Args:
        dataset: A directory that convert wrote.
    """
    from hbr_fast.data.remote import remote_url
    from hbr_fast.data.verify import verify_dataset

    found = verify_dataset(dataset)
    where = remote_url(found.path) or found.path
    print(
        f"{where}: good ({found.files} files, {found.bytes / 1e6:,.1f} MB, {found.samples:,} samples, "
        f"fingerprint {found.fingerprint[:12]})"
    )
