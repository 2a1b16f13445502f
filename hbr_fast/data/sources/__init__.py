"""Sources of images: each function reads one kind of input and returns a `Source` for `convert`."""

from collections.abc import Callable

from hbr_fast.data.sources.beton import beton
from hbr_fast.data.sources.cifar import cifar10, cifar100
from hbr_fast.data.sources.folder import folder
from hbr_fast.data.sources.huggingface import huggingface
from hbr_fast.data.sources.idx import fashion_mnist, mnist
from hbr_fast.data.sources.npz import npz
from hbr_fast.data.sources.source import EncodedSplit, Findings, Source, SourceSplit, array_split, checked_labels
from hbr_fast.data.sources.synthetic import synthetic
from hbr_fast.data.sources.torchvision import torchvision

SOURCES: dict[str, Callable[..., Source]] = {
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "folder": folder,
    "npz": npz,
    "beton": beton,
    "torchvision": torchvision,
    "huggingface": huggingface,
    "synthetic": synthetic,
}

__all__ = [
    "SOURCES",
    "EncodedSplit",
    "Findings",
    "Source",
    "SourceSplit",
    "array_split",
    "beton",
    "checked_labels",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "folder",
    "huggingface",
    "mnist",
    "npz",
    "synthetic",
    "torchvision",
]
