"""Published checksums of well-known files: what they should contain, so that a changed copy is noticed.

MD5 is what their publishers and torchvision give. It tells a damaged or edited copy from the original; it does not
protect from someone who forges one on purpose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from hbr_fast.files import require_ordinary

# By source and file. IDX files by their unpacked content, since several packages compress them anew; Fashion-MNIST's
# values are those of Debian's package, too. CIFAR's Python form by its files, as torchvision lists them; the binary
# form by its archive, since no publisher lists the files in it.
MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    "cifar10": {
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "cifar100": {
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
}


def is_changed(kind: str, file: str, content: Iterable[bytes | memoryview]) -> bool:
    """Whether a file of a source has another content than the published one; False where none is published.

    Parameters
    ----------
    kind, file : str
        Keys of `MD5`.
    content : iterable of bytes
        The content in pieces, not read if no checksum is known.
    """
    known = MD5.get(kind, {}).get(file)
    return known is not None and md5_of(content) != known


def md5_of(content: Iterable[bytes | memoryview]) -> str:
    """MD5 of a content in pieces, in hexadecimal."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in content:
        digest.update(piece)
    return digest.hexdigest()


def pieces_of(path: str) -> Iterable[bytes]:
    """A file's content in pieces of 1 MiB."""
    require_ordinary(path)
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            yield piece
