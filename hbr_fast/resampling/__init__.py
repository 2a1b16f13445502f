"""Resampling: from samples per class to the rows of an epoch."""

from hbr_fast.resampling.oversampling import OVERSAMPLE
from hbr_fast.resampling.pools import RankedPool
from hbr_fast.resampling.rows import resample
from hbr_fast.resampling.undersampling import UNDERSAMPLE

__all__ = ["OVERSAMPLE", "UNDERSAMPLE", "RankedPool", "resample"]
