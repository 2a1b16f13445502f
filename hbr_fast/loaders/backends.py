"""The backends: what each can do, what it needs, and where its class is. Asking imports none of them."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

# What a job may ask of a backend; the first seven are `Augment.features`.
FEATURES = (
    "flip",
    "alternating flip",
    "crop with zero padding",
    "crop with reflect padding",
    "crop with edge padding",
    "crop with mean padding",
    "random-resized crop",
    "cutout",
    "interpolated rows",
    "several stores",
)


@dataclass(frozen=True)
class Backend:
    """A backend that there is.

    Attributes
    ----------
    classes : mapping of str to str
        By device type, e.g. "cpu": the class, as "module:Class" below `hbr_fast.loaders`. It is made from a `Job` and
        has `epoch(epoch, start)`, an iterator of batches.
    features : frozenset of str
        Which of `FEATURES` it can do.
    keyed : bool
        Whether its augmentation is the reference's, pixel for pixel; else it draws numbers of its own.
    prefetch : int
        Batches made ahead where the caller does not say.
    prefetch_on_gpu : int
        The same where batches are made on a GPU.
    extra : str, optional
        The extra of hbr-fast that installs what it needs.
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
        features=frozenset(FEATURES),
        keyed=True,
        prefetch=0,
    ),
    "ffcv": Backend(
        classes={"cpu": "ffcv:FfcvBackend"},
        features=frozenset(FEATURES) - {"random-resized crop", "several stores"},
        keyed=True,
        prefetch=2,
        extra="ffcv",
    ),
    "dali": Backend(
        classes={"cpu": "dali:DaliBackend", "cuda": "dali:DaliBackend"},
        features=frozenset(FEATURES) - {"crop with reflect padding", "crop with edge padding"},
        keyed=True,
        prefetch=2,
        extra="dali",
    ),
    "torchvision": Backend(
        classes={"cpu": "torchvision:TorchvisionBackend"},
        features=frozenset(FEATURES),
        keyed=True,
        prefetch=4,
    ),
}


def find(name: str, device: str, features: Collection[str]) -> Backend:
    """The backend of a name, which must be able to do `features` on a type of device.

    Raises
    ------
    ValueError
        If there is none of that name, it does not make batches on that device, or lacks one of the features; the
        message names the backends that would do.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: available are auto, {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    if device not in backend.classes:
        raise ValueError(
            f"backend {name!r} makes batches on {', '.join(backend.classes)}, not on {device!r}: "
            f"{_those(lambda other: device in other.classes)}"
        )
    for feature in features:
        if feature not in backend.features:
            raise ValueError(
                f"backend {name!r} has no {feature}: {_those(lambda other, feature=feature: feature in other.features)}"
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
        If what it needs is not installed; the message says how to install it.
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
