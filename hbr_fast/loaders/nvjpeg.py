"""The nvjpeg backend: JPEGs are decoded on the GPU, by DALI's `mixed` decoder, then cropped and scaled there.

Encoded bytes go to the GPU after their checksum was compared. Boxes come from our words, and the turn to upright from
our index: DALI's own reading of EXIF is off. All else is the DALI backend's pipeline.

What nvJPEG is not asked to decode (PNG, damaged pictures, rows of a pool of pixels) is made by the decoder of the other
backends, at the output's size, and enters the same graph as an uncompressed file (PNM).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn
from nvidia.dali.types import DALIImageType, DALIInterpType

from hbr_fast import progress
from hbr_fast.data.encoded_images import MIRRORED, SIDEWAYS, UPSIDE_DOWN, EncodedImages
from hbr_fast.loaders.batch import Batch, Job
from hbr_fast.loaders.dali import DaliBackend, Input
from hbr_fast.loaders.rows import Rows


class NvjpegBackend(DaliBackend):
    """Batches of a job through a DALI pipeline that decodes; without encoded pictures, the DALI backend."""

    def __init__(self, job: Job) -> None:
        self._gray = job.split.image_shape[0] == 1
        super().__init__(job)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch.

        DALI refuses a whole batch for one picture that it cannot decode. Such a batch, and those that were under way,
        are decoded here, which sets bad pictures aside; the pipeline begins again at that batch.
        """
        if self.job.pictures is None:
            yield from super().epoch(epoch, start)
            return
        decoded_here: set[int] = set()
        number = start
        while number < self.job.batches:
            batches = self._batches(epoch, number, lambda n, rows: self._encoded_inputs(rows, here=n in decoded_here))
            while number < self.job.batches:
                try:
                    batch = next(batches)
                except RuntimeError as error:
                    if number in decoded_here or "decod" not in str(error):
                        raise
                    decoded_here.update(range(number, number + max(1, self.job.prefetch) + 1))
                    progress.say(f"batch {number} of epoch {epoch}: the GPU could not decode it, so the CPU does")
                    break
                yield batch
                number += 1

    def _inputs(self, rows: Rows) -> dict[str, Input]:
        return super()._inputs(rows) if self.job.pictures is None else self._encoded_inputs(rows, here=False)

    def _encoded_inputs(self, rows: Rows, *, here: bool) -> dict[str, Input]:
        """The pipeline's inputs for a batch; with `here`, no picture is left to be decoded."""
        inputs = self._decoding(rows, rows.index, "", here=here)
        if self._rows.interpolates:
            inputs |= self._decoding(rows, rows.partner, "partner ", here=here)
            inputs["weight"] = np.where(rows.partner >= 0, rows.weight, 1).astype(np.float32)
        return {**inputs, **self._draws(rows)}

    def _decoding(self, rows: Rows, index: np.ndarray, prefix: str, *, here: bool) -> dict[str, Input]:
        """What the graph decodes and how, for samples of the rows' stores; of rows without one (-1), a black image."""
        _, height, width = self.job.split.image_shape
        count = len(index)
        boxes, places = np.zeros((2, count, 4))
        boxes[:, 2:] = places[:, 2:] = height, width
        heights, widths, orientations = np.full(count, height), np.full(count, width), np.ones(count, np.int64)
        contents: list[bytes | None] = [None] * count
        pictures = self.job.pictures
        assert pictures is not None
        for number, split in enumerate(() if here else self._rows.splits):
            if not isinstance(split.store, EncodedImages):
                continue
            bad = [one - self.job.first_ids[number] for one in pictures.bad]
            own = np.flatnonzero((rows.store == number) & (index >= 0) & ~np.isin(index, bad))
            found = split.store.intact_jpegs(index[own])
            for b, one in zip(own.tolist(), found, strict=True):
                contents[b] = one
            own = own[[one is not None for one in found]]
            boxes[own], places[own] = pictures.views(split.store, index[own], rows.words[:, own])
            entries = split.store.index[index[own]]
            heights[own], widths[own], orientations[own] = (
                entries[name] for name in ("height", "width", "orientation")
            )
        ours = np.array([b for b, one in enumerate(contents) if one is None and index[b] >= 0], np.int64)
        for b, image in zip(ours.tolist(), self._rows.gathered(rows, ours, index[ours]), strict=True):
            contents[b] = _pnm(image)
        black = _pnm(np.zeros((1 if self._gray else 3, height, width), np.uint8))
        starts, sizes, matrices = _stored(boxes, places, heights, widths, orientations)
        return {
            f"{prefix}encoded": [np.frombuffer(black if one is None else one, np.uint8) for one in contents],
            f"{prefix}box_start": starts[:, :2].astype(np.float32),
            f"{prefix}box_end": (starts[:, :2] + starts[:, 2:]).astype(np.float32),
            f"{prefix}scaled": sizes.astype(np.float32),
            f"{prefix}turn": matrices.astype(np.float32),
        }

    def _images(self, inputs: dict[str, Any]) -> Any:
        if self.job.pictures is None:
            return super()._images(inputs)
        images = self._decoded(inputs, "")
        if not self._rows.interpolates:
            return images
        weight = inputs["weight"].gpu() if self.job.device.type == "cuda" else inputs["weight"]
        return weight * images + (1 - weight) * self._decoded(inputs, "partner ")

    def _decoded(self, inputs: dict[str, Any], prefix: str) -> Any:
        """The graph from encoded bytes to images of the output's size."""
        _, height, width = self.job.split.image_shape
        operators: Any = fn  # DALI's own types allow less than it takes
        images = operators.decoders.image(
            inputs[f"{prefix}encoded"],
            device="mixed" if self.job.device.type == "cuda" else "cpu",
            output_type=DALIImageType.GRAY if self._gray else DALIImageType.RGB,
            adjust_orientation=False,
        )
        images = operators.resize(
            images,
            size=inputs[f"{prefix}scaled"],
            roi_start=inputs[f"{prefix}box_start"],
            roi_end=inputs[f"{prefix}box_end"],
            antialias=True,
            interp_type=DALIInterpType.INTERP_LINEAR,
        )
        return operators.warp_affine(  # pixels only change places, so that nothing is interpolated
            images,
            matrix=inputs[f"{prefix}turn"],
            size=(height, width),
            fill_value=0,
            interp_type=DALIInterpType.INTERP_NN,
        )


def _pnm(image_chw: np.ndarray) -> bytes:
    channels, height, width = image_chw.shape
    return b"P%d\n%d %d\n255\n" % (6 if channels == 3 else 5, width, height) + image_chw.transpose(1, 2, 0).tobytes()


def _stored(
    boxes_b: np.ndarray, places_b: np.ndarray, heights_b: np.ndarray, widths_b: np.ndarray, orientations_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of upright pictures, as views of the stored ones and a turn.

    Returns
    -------
    boxes : float64 [B, 4]
        In the stored picture.
    sizes : int [B, 2]
        Height and width that these are scaled to.
    matrices : float64 [B, 2, 3]
        For each point (x, y, 1) of the image, the point (x, y) of the scaled box.
    """
    mirrored, upside_down, sideways = (
        np.isin(orientations_b, some)[:, None] for some in (MIRRORED, UPSIDE_DOWN, SIDEWAYS)
    )
    flips = np.concatenate([upside_down, mirrored], axis=1)  # of y, of x
    begins, extents = boxes_b[:, :2], boxes_b[:, 2:]
    begins = np.where(flips, np.stack([heights_b, widths_b], axis=1) - begins - extents, begins)
    offsets, sizes = places_b[:, :2], places_b[:, 2:]
    signs = np.where(flips, -1.0, 1.0)
    shifts = np.where(flips, sizes + offsets, -offsets)
    matrices = np.zeros((len(boxes_b), 2, 3))
    b = np.arange(len(boxes_b))
    for side in range(2):  # y, x
        target = np.where(sideways[:, 0], side, 1 - side)  # its row of the matrix: 0 for x, 1 for y
        matrices[b, target, 1 - side], matrices[b, target, 2] = signs[:, side], shifts[:, side]
    begins, extents, sizes = (np.where(sideways, one[:, ::-1], one) for one in (begins, extents, sizes))
    return np.concatenate([begins, extents], axis=1), sizes, matrices
