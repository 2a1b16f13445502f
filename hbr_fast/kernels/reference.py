"""Reference implementation of every kernel, in plain numpy and float64: the specification and the test oracle.

Nothing here is fast. A kernel must agree with its definition here exactly in what it selects and to rounding in what it
computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

from hbr_fast.seeding import Stream, philox, stream_key

IntOrArray = TypeVar("IntOrArray", int, np.ndarray)


def make_batch(
    images_nchw: np.ndarray,
    index_b: np.ndarray,
    partner_b: np.ndarray,
    weight_b: np.ndarray,
    *,
    first_position: int,
    step: int = 1,
    epoch: int,
    seed: int,
    mean_c: np.ndarray,
    std_c: np.ndarray,
    flip: float = 0.0,
    alternating_flip: bool = False,
    pad: int = 0,
    padding: str = "zero",
    resized_crop: tuple[float, float] | None = None,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    cutout: int = 0,
    keyed_by: str = "position",
    copy_b: np.ndarray | None = None,
) -> np.ndarray:
    """The images of one batch, float64 [B, C, H, W].

    Parameters
    ----------
    images_nchw : uint8 [N, C, H, W]
    index_b, partner_b : int64 [B], weight_b : float32 [B]
        Sample, interpolation partner (-1: none) and share of the sample of each row.
    first_position, step, epoch, seed : int
        Row b of the batch is at position `first_position + b * step` of the epoch.
    mean_c, std_c : float [C]
        Normalisation, for pixels scaled to [0, 1].
    flip, alternating_flip, pad, padding, resized_crop, aspect, cutout
        As in `hbr_fast.Augment`, applied in this order: interpolate, crop, flip, cut out, normalise.
    keyed_by : {"position", "sample"}
        What the random numbers depend on, beside the epoch: the position, or the sample and `copy_b`.
    copy_b : int64 [B], optional
        How many earlier rows of the plan have the same sample; by default 0.
    """
    _, channels, height, width = images_nchw.shape
    key = stream_key(seed, Stream.AUGMENTATION)
    sizes = crop_sizes(height, width, resized_crop, aspect) if resized_crop else None
    out = np.empty((len(index_b), channels, height, width))
    for b in range(len(index_b)):
        image = images_nchw[index_b[b]].astype(np.float64)
        if partner_b[b] >= 0:
            share = float(weight_b[b])
            image = share * image + (1 - share) * images_nchw[partner_b[b]]
        drawn_by = first_position + b * step
        if keyed_by == "sample":
            drawn_by = draw_key(int(index_b[b]), 0 if copy_b is None else int(copy_b[b]))
        place = (drawn_by & 0xFFFFFFFF, drawn_by >> 32, epoch)
        words = philox((*place, 0), key)
        if sizes is not None:
            tall, wide = (int(side) for side in sizes[words[3] * len(sizes) >> 32])
            top, left = words[1] * (height - tall + 1) >> 32, words[2] * (width - wide + 1) >> 32
            image = resized(image[:, top : top + tall, left : left + wide], height, width)
        elif pad:
            top, left = (word * (2 * pad + 1) >> 32 for word in words[1:3])
            image = padded(image, pad, padding, mean_c)[:, top : top + height, left : left + width]
        if alternating_flip:
            sample = int(index_b[b])
            first = philox((sample & 0xFFFFFFFF, sample >> 32, 0, 2), key)[0]
            flipped = (first < round(flip * 2**32)) != bool(epoch % 2)
        else:
            flipped = words[0] < round(flip * 2**32)
        if flipped:
            image = image[:, :, ::-1]
        if cutout:
            words = philox((*place, 1), key)
            top, left = words[0] * (height - cutout + 1) >> 32, words[1] * (width - cutout + 1) >> 32
            image = image.copy()
            image[:, top : top + cutout, left : left + cutout] = mean_level(mean_c)[:, None, None]
        out[b] = (image / 255 - mean_c[:, None, None]) / std_c[:, None, None]
    return out


def draw_key(sample: IntOrArray, copy: IntOrArray) -> IntOrArray:
    """The counter of a plan row's random numbers, where they are keyed by sample, in place of the position.

    Copy k of a sample is the row that k earlier rows of the plan with the same sample precede.
    """
    return sample | copy << 40


def mean_level(mean_c: np.ndarray) -> np.ndarray:
    """The mean of each channel rounded to a grey level that fits a byte, float64 [C]."""
    return np.rint(255 * np.asarray(mean_c, np.float64))


def padded(image_chw: np.ndarray, pad: int, padding: str, mean_c: np.ndarray) -> np.ndarray:
    """An image padded by `pad` pixels on each side: zeros, the channel's mean, the edge repeated, or a reflection.

    A reflection does not repeat the pixel at the edge.
    """
    around = ((0, 0), (pad, pad), (pad, pad))
    if padding == "mean":
        level = mean_level(mean_c)[:, None, None]
        return np.pad(image_chw - level, around) + level
    if padding == "zero":
        return np.pad(image_chw, around)
    return np.pad(image_chw, around, mode="edge" if padding == "edge" else "reflect")


def resized(image_chw: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image scaled to another size: bilinear between pixel centres; the edge beyond the outermost centres."""

    def between(size: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # The centre of new pixel x is at ((2 x + 1) size - new) / (2 new): integers, the same on every device.
        at = np.clip((2 * np.arange(new) + 1) * size - new, 0, (size - 1) * 2 * new)
        low = at // (2 * new)
        return low, np.minimum(low + 1, size - 1), (at - low * 2 * new) / (2 * new)

    low, high, share = between(image_chw.shape[1], height)
    rows = image_chw[:, low] * (1 - share)[:, None] + image_chw[:, high] * share[:, None]
    low, high, share = between(image_chw.shape[2], width)
    return rows[:, :, low] * (1 - share) + rows[:, :, high] * share


def crop_sizes(height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]) -> np.ndarray:
    """Height and width of the equally likely crops of a random-resized crop: int64 [4096, 2].

    The midpoints of 64 equal parts of the area's range by 64 of the log aspect ratio's range (width over height); a
    side longer than the image's is cut to it. A table, so that every device takes the same crops: logarithms and roots
    round differently on each. torchvision draws the two from the same ranges, and draws again if a side is too long.
    """
    shares, ratios = _crop_grid(area, aspect)
    areas = height * width * shares[:, None]
    sides = np.stack([np.sqrt(areas / ratios), np.sqrt(areas * ratios)], axis=-1).reshape(-1, 2)
    return np.clip(np.rint(sides), 1, (height, width)).astype(np.int64)


def _crop_grid(area: tuple[float, float], aspect: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The 64 shares of the area and the 64 aspect ratios of crops."""
    middles = (np.arange(64) + 0.5) / 64
    return area[0] + (area[1] - area[0]) * middles, aspect[0] * (aspect[1] / aspect[0]) ** middles


def crops(
    heights_n: np.ndarray,
    widths_n: np.ndarray,
    words_4n: np.ndarray,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> np.ndarray:
    """The random-resized crops of pictures of any sizes: int64 [N, 4], top, left, height and width.

    The definition is that of `make_batch`: word 3 takes one of `crop_sizes`, of the picture's own size, words 1 and 2
    its place. All at once, without a table for each size.

    Parameters
    ----------
    heights_n, widths_n : int [N]
    words_4n : uint64 [4, N]
        32-bit words.
    """
    tall_n, wide_n = np.asarray(heights_n, np.int64), np.asarray(widths_n, np.int64)
    words = np.asarray(words_4n, np.uint64).astype(np.int64)
    shares, ratios = _crop_grid(area, aspect)
    chosen = words[3] * 4096 >> 32
    areas, ratio = tall_n * wide_n * shares[chosen // 64], ratios[chosen % 64]
    found = np.empty((len(tall_n), 4), np.int64)
    found[:, 2] = np.clip(np.rint(np.sqrt(areas / ratio)), 1, tall_n)
    found[:, 3] = np.clip(np.rint(np.sqrt(areas * ratio)), 1, wide_n)
    found[:, 0] = words[1] * (tall_n - found[:, 2] + 1) >> 32
    found[:, 1] = words[2] * (wide_n - found[:, 3] + 1) >> 32
    return found


def box_resized(image_chw: np.ndarray, box: Sequence[float], height: int, width: int) -> np.ndarray:
    """A box of a picture scaled to another size: bilinear, antialiased; float64 [C, height, width].

    Each new pixel is the mean of the pixels whose centres lie within one new pixel of its own centre (or within one
    old pixel, if the box is enlarged), weighted by a triangle. Pixels of the picture outside of the box take part,
    and outside of the picture there are none. This is Pillow's `resize(box=...)`, and torchvision's `antialias=True`.

    Parameters
    ----------
    image_chw : [C, H, W]
    box : (top, left, height, width)
        In pixels and fractions of them.
    """

    def weights(start: float, length: float, size: int, new: int) -> np.ndarray:
        scale = length / new
        support = max(scale, 1.0)
        centres = start + (np.arange(new) + 0.5) * scale
        distance = np.abs(np.arange(size) + 0.5 - centres[:, None])
        found = np.maximum(0.0, 1 - distance / support)
        return found / found.sum(axis=1, keepdims=True)

    _, tall, wide = image_chw.shape
    rows, columns = weights(box[0], box[2], tall, height), weights(box[1], box[3], wide, width)
    scaled: np.ndarray = rows @ image_chw.astype(np.float64) @ columns.T
    return scaled


def bijection(position: int, length: int, a: int, b: int, keys: Sequence[int]) -> int:
    """The element at one position of the permutation of [0, length) defined by the round keys.

    A Feistel network on the grid a x b with cycle-walking (Black & Rogaway, CT-RSA 2002).
    """

    def mix(digit: int, key: int) -> int:
        h = (digit ^ key) & 0xFFFFFFFF
        h = (h ^ h >> 16) * 0x7FEB352D & 0xFFFFFFFF
        h = (h ^ h >> 15) * 0x846CA68B & 0xFFFFFFFF
        return h ^ h >> 16

    x = position
    while True:
        left, right = divmod(x, b)
        for j in range(0, len(keys), 2):
            left = (left + (mix(right, keys[j]) * a >> 32)) % a
            right = (right + (mix(left, keys[j + 1]) * b >> 32)) % b
        x = left * b + right
        if x < length:
            return x


def quota_row(
    position: int,
    labels_n: np.ndarray,
    counts_c: Sequence[int],
    *,
    keys: Sequence[int],
    member_keys: Sequence[int],
    salts_c: Sequence[int],
    preference_n: np.ndarray | None = None,
) -> int:
    """The sample at one position of an epoch that takes `counts_c[c]` samples of class c.

    The slots 0, 1, ... belong to class 0, then to class 1, and so on; a bijection maps the position to a slot. The
    slots of a class cycle through its members: in the order of a second bijection, or with a preference the most
    preferred first.

    Parameters
    ----------
    position : int
        Below the sum of the counts.
    labels_n : int64 [N]
    counts_c : sequence of int [C]
    keys, member_keys : sequence of int
        Round keys of the two bijections; those of class c are `member_keys` XOR `salts_c[c]`.
    preference_n : float [N], optional
        Ties go to the smaller id. `member_keys` are then not used.
    """

    def grid(length: int) -> tuple[int, int]:
        a = math.ceil(math.sqrt(length))
        return a, math.ceil(length / a)

    total = sum(counts_c)
    slot = bijection(position, total, *grid(total), keys)
    c = 0
    while slot >= counts_c[c]:
        slot -= counts_c[c]
        c += 1
    members = [i for i, label in enumerate(labels_n.tolist()) if label == c]
    turn = slot % len(members)
    if preference_n is not None:
        return sorted(members, key=lambda i: -preference_n[i])[turn]
    return members[bijection(turn, len(members), *grid(len(members)), [key ^ salts_c[c] for key in member_keys])]


def alias_draw(
    position: int, epoch: int, key: tuple[int, int], thresholds_n: Sequence[int], aliases_n: Sequence[int]
) -> int:
    """The draw at one position of an epoch by an alias table (Walker, ACM TOMS 1977).

    Column i gives i with probability `thresholds_n[i]` / 2**64, else `aliases_n[i]`. For a 64-bit number u in [0, 1)
    the integer part of u n selects the column, and the fraction decides within it.
    """
    block = position >> 1
    words = philox((block & 0xFFFFFFFF, block >> 32, epoch, 0), key)
    high, low = words[2:] if position & 1 else words[:2]
    column, uniform = divmod((high << 32 | low) * len(thresholds_n), 2**64)
    return column if uniform < thresholds_n[column] else aliases_n[column]


def exponential_key(row: int, weight: float, epoch: int, key: tuple[int, int]) -> float:
    """An exponential variate divided by the weight: sorting rows by key draws them without replacement."""
    words = philox((row & 0xFFFFFFFF, row >> 32, epoch, 1), key)
    uniform = ((words[0] << 32 | words[1]) // 2**12 + 0.5) / 2**52
    return -math.log(uniform) / weight if weight > 0 else math.inf


def is_recorded(logits_c: np.ndarray, label: int) -> bool:
    """Whether a visit is an observation: the own and at least one other logit finite, the rest finite or -inf.

    A class of logit -inf is masked: it has no probability and is ignored. If all others are masked, there is no margin.
    """
    others = np.delete(np.asarray(logits_c, np.float64), label)
    return bool(np.isfinite(logits_c[label]) and np.isfinite(others.max()))


def observation(logits_c: np.ndarray, label: int) -> dict[str, float]:
    """The observations of one visit of a sample (method, section 2): one number per estimator.

    Parameters
    ----------
    logits_c : float [C]
        For which `is_recorded` holds.
    label : int
        In [0, C).
    """
    z = np.asarray(logits_c, np.float64)
    others = np.delete(z, label)
    p = np.exp(z - z.max())
    p /= p.sum()
    error = p.copy()  # p minus the one-hot label; the own entry is minus the sum of the others, not p_y - 1,
    error[label] = -np.delete(p, label).sum()  # which has no digits left where p_y is near 1
    return {
        "aum": z[label] - others.max(),
        "aum_softmax": p[label] - np.delete(p, label).max(),
        "confidence": p[label],
        "confidence_logit": z[label],
        "correctness": float(np.argmax(z) == label),
        "dataiq": p[label] * (1 - p[label]),
        "loss": float(np.logaddexp.reduce(z - z[label])),
        "el2n": float(np.linalg.norm(error)),
    }


def hardness(visits: Sequence[tuple[int, np.ndarray, int]], *, epochs: int, el2n_epochs: int) -> dict[str, float]:
    """Every in-loop estimator of one sample from its visits in order; NaN where nothing was observed.

    Parameters
    ----------
    visits : sequence of (epoch, logits float [C], label)
        Epochs count from 0. Visits that are not recorded (see `is_recorded`) are left out.
    epochs : int
        Epochs trained: the first-learned value of a sample never classified right.
    el2n_epochs : int
        EL2N uses the epochs below this.

    Returns
    -------
    dict
        Estimator name to score. `forgetting` of a never-learnt sample is NaN here: its value is a policy over all
        samples (see `HardnessRecorder.scores`).
    """
    seen = [(epoch, observation(z, y)) for epoch, z, y in visits if is_recorded(z, y)]
    if not seen:
        names = (
            "aum",
            "aum_softmax",
            "confidence",
            "confidence_logit",
            "variability",
            "correctness",
            "dataiq",
        )
        return dict.fromkeys((*names, "loss", "el2n", "forgetting", "first_learned"), math.nan)
    result = {name: float(np.mean([values[name] for _, values in seen])) for name in seen[0][1] if name != "el2n"}
    early = [values["el2n"] for epoch, values in seen if epoch < el2n_epochs]
    result["el2n"] = float(np.mean(early)) if early else math.nan
    result["variability"] = float(np.std([values["confidence"] for _, values in seen]))
    right = [bool(values["correctness"]) for _, values in seen]
    forgotten = sum(before and not after for before, after in pairwise(right))
    result["forgetting"] = float(forgotten) if any(right) else math.nan
    learned = [epoch for (epoch, _), good in zip(seen, right, strict=True) if good]
    result["first_learned"] = float(learned[0] if learned else epochs)
    return result


def batch_norm(
    x_bhwc: np.ndarray,
    weight_c: np.ndarray,
    bias_c: np.ndarray,
    *,
    eps: float,
    after: str = "nothing",
    other_bhwc: np.ndarray | None = None,
) -> np.ndarray:
    """Images normalised by their own mean and biased variance (Ioffe & Szegedy 2015, algorithm 1), then `after`.

    Parameters
    ----------
    x_bhwc : float [B, H, W, C]
    weight_c, bias_c : float [C]
    eps : float
        Added to the variance.
    after : {"nothing", "relu", "residual", "pool"}
        "residual": the sum with `other_bhwc`, then ReLU. "pool": ReLU, then a 2x2 max-pool that drops the remainder of
        an odd height or width.

    Returns
    -------
    float64 [B, H, W, C], with "pool" [B, H // 2, W // 2, C]
    """
    normal = _normal(x_bhwc, weight_c, bias_c, eps)
    if after == "pool":
        return np.maximum(_windows(normal).max(3), 0)
    if after == "residual":
        normal = normal + other_bhwc
    return normal if after == "nothing" else np.maximum(normal, 0)


def batch_norm_gradients(
    g: np.ndarray,
    x_bhwc: np.ndarray,
    weight_c: np.ndarray,
    bias_c: np.ndarray,
    *,
    eps: float,
    after: str = "nothing",
    other_bhwc: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients by x, other, weight and bias of a loss whose gradient by the output of `batch_norm` is `g`.

    ReLU passes it where its input is above 0; a pool window passes it to the first of its largest pixels.
    """
    normal = _normal(x_bhwc, weight_c, bias_c, eps)
    if after == "pool":
        windows, gradient = _windows(normal), np.zeros_like(normal)
        first = windows.argmax(3)[:, :, :, None]
        shared = np.zeros_like(windows)
        np.put_along_axis(shared, first, np.where(windows.max(3) > 0, g, 0)[:, :, :, None], 3)
        for pixel in range(4):
            height, width = 2 * windows.shape[1], 2 * windows.shape[2]
            gradient[:, pixel // 2 : height : 2, pixel % 2 : width : 2] = shared[:, :, :, pixel]
    else:
        before = normal + other_bhwc if after == "residual" else normal
        gradient = g if after == "nothing" else np.where(before > 0, g, 0)
    inverse = 1 / np.sqrt(x_bhwc.var((0, 1, 2)) + eps)
    deviation = (x_bhwc - x_bhwc.mean((0, 1, 2))) * inverse
    by_weight, by_bias = (gradient * deviation).sum((0, 1, 2)), gradient.sum((0, 1, 2))
    size = x_bhwc[..., 0].size
    by_x = weight_c * inverse * (gradient - by_bias / size - deviation * by_weight / size)
    return by_x, gradient, by_weight, by_bias


def _normal(x_bhwc: np.ndarray, weight_c: np.ndarray, bias_c: np.ndarray, eps: float) -> np.ndarray:
    x = np.asarray(x_bhwc, np.float64)
    normal: np.ndarray = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + eps) * weight_c + bias_c
    return normal


def _windows(images_bhwc: np.ndarray) -> np.ndarray:
    """The pixels of each 2x2 window, in memory order: [B, H // 2, W // 2, 4, C]."""
    height, width = 2 * (images_bhwc.shape[1] // 2), 2 * (images_bhwc.shape[2] // 2)
    return np.stack([images_bhwc[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)], axis=3)
