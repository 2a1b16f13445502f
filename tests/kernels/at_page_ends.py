"""Records batches, alone and with their loss, that end where readable memory ends: a byte too far kills the process."""

import ctypes
import itertools
import mmap

import numpy as np
import torch

from hbr_fast import HardnessRecorder
from hbr_fast.kernels.hardness import cpu_cross_entropy, layout, passes

_library = ctypes.CDLL(None, use_errno=True)
_library.mmap.restype = ctypes.c_void_p
_library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
_library.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def at_page_end(values: torch.Tensor) -> torch.Tensor:
    """A copy whose last byte ends a page that is followed by an inaccessible one."""
    array = values.numpy()
    pages = -(-array.nbytes // mmap.PAGESIZE)
    access = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = _library.mmap(None, (pages + 1) * mmap.PAGESIZE, *access, -1, 0)
    end = start + pages * mmap.PAGESIZE
    if _library.mprotect(end, mmap.PAGESIZE, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    memory = memoryview((ctypes.c_char * array.nbytes).from_address(end - array.nbytes))
    copy = np.frombuffer(memory, array.dtype).reshape(array.shape)
    copy[...] = array
    return torch.from_numpy(copy)


def main() -> None:
    for classes, rows, threads in itertools.product((2, 8, 9, 16, 17, 40), (1, 15, 16, 17, 400), (1, 2)):
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(rows)
        logits = at_page_end(torch.randn(rows, classes, generator=generator))
        labels = at_page_end(torch.randint(classes, (rows,), generator=generator))
        ids = at_page_end(torch.randperm(rows, generator=generator))
        gradient, weights = at_page_end(torch.zeros(rows, classes)), at_page_end(torch.ones(classes))
        loss, recorder = torch.zeros(()), HardnessRecorder(rows, classes)
        recorder.record(logits, labels, ids, epoch=0)
        kernels, form = passes.loss_kernels(mean=True, record=True), passes.form_of(logits, labels, ids)
        _, one = passes.take(kernels, form, logits, labels, ids, rows, layout.ALL_COLUMNS)
        one.options[cpu_cross_entropy.SMOOTHING], one.options[cpu_cross_entropy.TOTAL_WEIGHT] = 0.1, classes
        one.point_to(loss, gradient, weights)
        one.run(logits, labels, ids, (0, 20, recorder.sums, recorder.counters, recorder.nonfinite))
        leaf = logits.clone().requires_grad_()
        torch.nn.functional.cross_entropy(leaf, labels, label_smoothing=0.1).backward()
        torch.testing.assert_close(gradient, leaf.grad)
        assert recorder.counters[:, layout.OBSERVATIONS].tolist() == [2] * rows


if __name__ == "__main__":
    main()
    print("all there, and nothing else")
