"""Table of the backends: features, requirements and classes. Looking one up imports none of them."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hbr_fast.arguments import did_you_mean

# Operations of an `Augment` on a whole batch: `batch_transforms` applies them to the batches of a backend that says so.
ON_BATCH = (
    "vertical flip",
    "rotation and affine",
    "TrivialAugment",
    "RandAugment",
    "color jitter",
    "grayscale",
    "Gaussian blur",
    "transform of torchvision or the user",
    "random erasing",
)
# Features that a job may require of a backend; all but the last four are `Augment.features`. Each backend lists its
# own: a new feature is refused by every backend that does not name it.
FEATURES = (
    "flip",
    "alternating flip",
    "crop with zero padding",
    "crop with reflect padding",
    "crop with edge padding",
    "crop with mean padding",
    "random-resized crop",
    "cutout",
    "augmentation keyed by sample",
    *ON_BATCH,
    "interpolated rows",
    "several stores",
    "encoded pictures",
    "cache of decoded pictures",
)

_FLIPS = frozenset({"flip", "alternating flip"})
_CONSTANT_CROPS = frozenset({"crop with zero padding", "crop with mean padding"})
_CROPS = _CONSTANT_CROPS | {"crop with reflect padding", "crop with edge padding"}
_COMMON = _FLIPS | {"random-resized crop", "cutout", "augmentation keyed by sample", "interpolated rows", *ON_BATCH}


@dataclass(frozen=True)
class Backend:
    """An entry of the table of backends.

    Attributes
    ----------
    classes : mapping of str to str
        By device type, e.g. "cpu": the class, as "module:Class" below `hbr_fast.loaders`. It is constructed from a
        `Job` and has `epoch(epoch, start)`, an iterator of batches.
    features : frozenset of str
        The supported `FEATURES`.
    keyed : bool
        Whether its augmentation equals the reference pixel for pixel; else it draws its own random numbers.
    prefetch : int
        Default number of batches made ahead.
    prefetch_on_gpu : int
        The same for batches made on a GPU.
    extra : str, optional
        The extra of hbr-fast that installs its requirements.
    """

    classes: Mapping[str, str]
    features: frozenset[str]
    keyed: bool
    prefetch: int
    prefetch_on_gpu: int = 2
    extra: str | None = None


BACKENDS: dict[str, Backend] = {
    "native": Backend(
        classes={"cpu": "native:NativeBackend", "cuda": "native_cuda:NativeCudaBackend"},
        features=_COMMON | _CROPS | {"several stores", "encoded pictures", "cache of decoded pictures"},
        keyed=True,
        prefetch=0,
    ),
    "ffcv": Backend(
        classes={"cpu": "ffcv:FfcvBackend"},
        features=_COMMON | _CROPS | {"encoded pictures", "cache of decoded pictures"},
        keyed=True,
        prefetch=2,
        extra="ffcv",
    ),
    "dali": Backend(
        classes={"cpu": "dali:DaliBackend", "cuda": "dali:DaliBackend"},
        features=_COMMON | _CONSTANT_CROPS | {"several stores", "encoded pictures", "cache of decoded pictures"},
        keyed=True,
        prefetch=2,
        extra="dali",
    ),
    "nvjpeg": Backend(
        classes={"cuda": "nvjpeg:NvjpegBackend"},
        features=_COMMON | _CONSTANT_CROPS | {"several stores", "encoded pictures"},
        keyed=True,
        prefetch=2,
        extra="dali",
    ),
    "torchvision": Backend(
        classes={"cpu": "torchvision:TorchvisionBackend"},
        features=_COMMON | _CROPS | {"several stores", "encoded pictures"},
        keyed=True,
        prefetch=4,
    ),
}


def find(name: str, device: str, features: Collection[str]) -> Backend:
    """Look up a backend that supports `features` on a type of device.

    Raises
    ------
    ValueError
        If the name is unknown, or the backend does not support the device or a feature; the message names the
        backends that do.
    """
    if name not in BACKENDS:
        raise ValueError(
            f"unknown backend {name!r}: available are auto, {', '.join(BACKENDS)}{did_you_mean(BACKENDS, name)}"
        )
    backend = BACKENDS[name]
    if device not in backend.classes:
        raise ValueError(
            f"backend {name!r} makes batches on {', '.join(backend.classes)}, not on {device!r}: "
            f"{_those(lambda other: device in other.classes)}"
        )
    for feature in features:
        if feature not in backend.features:
            raise ValueError(
                f"backend {name!r} has no {feature}: "
                f"{_those(lambda other, feature=feature: device in other.classes and feature in other.features)}"
            )
    return backend


def _those(can: Any) -> str:
    names = [name for name, backend in BACKENDS.items() if can(backend)]
    return f"use {' or '.join(names)}" if names else "no backend does"


def load(name: str, device: str) -> Any:
    """The class of a backend.

    Raises
    ------
    ImportError
        If a requirement is not installed; the message says how to install it.
    """
    module, _, class_name = BACKENDS[name].classes[device].partition(":")
    try:
        return getattr(importlib.import_module(f"hbr_fast.loaders.{module}"), class_name)
    except ImportError as error:
        if (extra := BACKENDS[name].extra) is None:
            raise
        raise ImportError(
            f"backend {name!r} needs what is not installed ({error}): pip install 'hbr-fast[{extra}]'"
        ) from error
