"""Recorders of short histories, for the tests of recording and scores."""

import torch

from hbr_fast.hardness import HardnessRecorder

RIGHT, WRONG = [2.0, 0.0], [0.0, 2.0]  # logits of two classes for label 0


def record_history(*histories: str, num_samples: int | None = None, order: str = "by epoch") -> HardnessRecorder:
    """A recorder of samples of class 0, each with a history such as "rwr": right, wrong, right in epochs 0, 1, 2."""
    recorder = HardnessRecorder(num_samples or len(histories), 2)
    for epoch in range(len(histories[0])):
        logits = [RIGHT if history[epoch] == "r" else WRONG for history in histories]
        ids = torch.arange(len(histories))
        if order == "by epoch":
            recorder.record(torch.tensor(logits), torch.zeros_like(ids), ids, epoch=epoch)
        else:  # one batch per sample
            for i in range(len(histories)):
                recorder.record(torch.tensor(logits[i : i + 1]), torch.tensor([0]), ids[i : i + 1], epoch=epoch)
    return recorder
