"""The DALI backend: one pipeline, on the CPU or a GPU, fed with our rows, crops and flips.

DALI's own readers and random operators support neither plans nor our random numbers. So a batch's pixels and draws are
fed in from outside, and the resulting pixels equal those of the other backends. `nvjpeg.py` also decodes in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn
from nvidia.dali.types import DALIDataType, DALIInterpType

from hbr_fast.loaders.batch import Batch, Job
from hbr_fast.loaders.rows import Rows, RowsOfJob

Input = np.ndarray | list[np.ndarray]  # of a batch, of images of one size or of any


class DaliBackend:
    """Batches of a job through a DALI pipeline, which is rebuilt for each epoch: that takes milliseconds."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._rows = RowsOfJob(job)
        self._names = list(self._inputs(self._rows.batch(0, 0)))

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch."""
        return self._batches(epoch, start, lambda _, rows: self._inputs(rows))

    def _batches(self, epoch: int, start: int, inputs_of: Callable[[int, Rows], dict[str, Input]]) -> Iterator[Batch]:
        """The same, with the pipeline's inputs for batch number so and so."""
        fed: dict[int, tuple[Rows, dict[str, Input]]] = {}  # DALI reads these arrays where they lie

        batches = self._rows.batches(epoch, start)

        def feed(iteration: int) -> list[Input]:
            number, rows = start + iteration, next(batches)  # after the last one, StopIteration ends the epoch
            inputs = inputs_of(number, rows)
            fed[number] = rows, inputs
            return list(inputs.values())

        pipeline = self._pipeline(self._names, feed)
        for number in range(start, self.job.batches):
            (images,) = pipeline.run()
            rows, _ = fed.pop(number)
            yield self._batch(images, rows)

    def _inputs(self, rows: Rows) -> dict[str, Input]:
        """The pipeline's inputs for a batch."""
        return {"images": self._rows.images(rows), **self._draws(rows)}

    def _draws(self, rows: Rows) -> dict[str, Input]:
        """The inputs that say how images are augmented."""
        augment = self.job.augment
        inputs: dict[str, Input] = {"mirror": rows.flipped.astype(np.int32)}
        if augment.pad or augment.resized_crop:
            inputs["start"] = rows.crop[:, :2].astype(np.int32)
        if augment.resized_crop:
            inputs["shape"] = rows.crop[:, 2:].astype(np.int32)
        if augment.cutout:  # erased before mirroring, so that it is in the right place afterwards
            top, left = rows.cutout.T
            mirrored = self.job.split.image_shape[2] - augment.cutout - left
            inputs["anchor"] = np.stack([top, np.where(rows.flipped, mirrored, left)], axis=1).astype(np.float32)
        return inputs

    def _images(self, inputs: dict[str, Any]) -> Any:
        """The graph's images, before they are augmented, on the pipeline's device."""
        return inputs["images"].gpu() if self.job.device.type == "cuda" else inputs["images"]

    def _pipeline(self, names: Sequence[str], feed: Callable[[int], Sequence[Input]]) -> Pipeline:
        """The built pipeline; `feed(batch)` returns its inputs by these names."""
        job, augment = self.job, self.job.augment
        _, height, width = job.split.image_shape
        pipeline = Pipeline(
            batch_size=job.batch_size,
            num_threads=job.threads,
            device_id=None if job.device.type == "cpu" else job.device.index or 0,
            prefetch_queue_depth=max(1, job.prefetch),
        )
        with pipeline:
            layouts = ["CHW" if name == "images" else "" for name in names]
            sources = fn.external_source(
                feed, num_outputs=len(names), batch=True, batch_info=False, layout=layouts, no_copy=True
            )
            inputs: dict[str, Any] = dict(zip(names, sources, strict=True))
            images = self._images(inputs)
            if augment.pad:
                images = fn.slice(
                    images,
                    start=inputs["start"],
                    shape=(height, width),
                    axis_names="HW",
                    out_of_bounds_policy="pad",
                    fill_values=job.padding_c.tolist(),
                )
            if augment.resized_crop:
                images = fn.slice(images, start=inputs["start"], shape=inputs["shape"], axis_names="HW")
                images = fn.resize(
                    images,
                    size=(height, width),
                    antialias=False,
                    dtype=DALIDataType.FLOAT,
                    interp_type=DALIInterpType.INTERP_LINEAR,
                )
            if augment.cutout:
                images = fn.erase(
                    images,
                    anchor=inputs["anchor"],
                    shape=(augment.cutout, augment.cutout),
                    axis_names="HW",
                    fill_value=job.cutout_c.tolist(),
                )
            images = fn.crop_mirror_normalize(
                images,
                mirror=inputs["mirror"],
                mean=[0.0] if job.levels else (255 * job.split.mean.astype(np.float64)).tolist(),
                std=[1.0] if job.levels else (255 * job.split.std.astype(np.float64)).tolist(),
                dtype=DALIDataType.FLOAT,
                output_layout="HWC" if job.channels_last else "CHW",
            )
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline

    def _batch(self, images: Any, rows: Rows) -> Batch:
        pixels = torch.from_dlpack(images.as_tensor())  # not copied: DALI releases the memory that it handed out
        if self.job.channels_last:
            pixels = pixels.permute(0, 3, 1, 2)
        labels, ids, numbers = (torch.from_numpy(column) for column in (rows.labels, rows.ids, rows.rows))
        device = self.job.device
        return Batch(pixels.to(self.job.dtype), labels.to(device), ids.to(device), numbers.to(device))
