"""Mean predicted probabilities: the only recorded quantity with one number per class and sample."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed

from hbr_fast.hardness import ranks


class SummedProbabilities:
    """Sums over visits, float32 [N, C].

    Attributes
    ----------
    total : float32 [N, C]
        In a distributed run: of all ranks, up to the last merge.
    """

    def __init__(self, rows: int, num_classes: int, device: torch.device | str, *, distributed: bool) -> None:
        self.total = torch.zeros(rows, num_classes, dtype=torch.float32, device=device)
        self._since_merge = torch.zeros_like(self.total) if distributed else None

    def add(self, logits_bc: torch.Tensor, labels_b: torch.Tensor, ids_b: torch.Tensor) -> None:
        """Add the recorded rows; nothing is read back from the device."""
        logits_bc, ids_b = logits_bc.float(), ids_b.long()
        kept = ranks.is_recorded(logits_bc, labels_b) & (labels_b >= 0) & (labels_b < logits_bc.shape[1])
        kept &= (ids_b >= 0) & (ids_b < len(self.total))
        shares = torch.where(kept[:, None], logits_bc.softmax(1), 0.0)
        into = self.total if self._since_merge is None else self._since_merge
        into.index_add_(0, torch.where(kept, ids_b, 0), shares)

    def merge_ranks(self, group: torch.distributed.ProcessGroup | None) -> None:
        """Add what all ranks added since the last merge."""
        assert self._since_merge is not None
        ranks.all_reduce(self._since_merge, group)
        self.total += self._since_merge
        self._since_merge.zero_()

    def grow(self, rows: int) -> None:
        """Make room for more samples."""
        self.total = torch.cat([self.total, self.total.new_zeros(rows - len(self.total), self.total.shape[1])])

    def restart(self, total: torch.Tensor) -> None:
        """Go on from other sums."""
        self.total = total
        if self._since_merge is not None:
            self._since_merge = torch.zeros_like(total)

    def means(self, observations_n: torch.Tensor) -> np.ndarray:
        """Mean over the given number of visits: float32 [N, C], NaN if there is none."""
        means: np.ndarray = (self.total / observations_n[:, None]).cpu().numpy()  # 0 / 0 is NaN
        return means
