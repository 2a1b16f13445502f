"""Orders: which row stands at which position of an epoch, as pure functions of (seed, epoch, position).

An order has no hidden state: any position of any epoch can be asked for, in any process, at any time. Our `Loader`
takes an order as it is; `torch_sampler.py` puts one into torch's `DataLoader`.
"""

from hbr_fast.sampler.order import PARALLEL_ROWS, Sampler, Shard, Uneven
from hbr_fast.sampler.quota import QuotaOrder, quota_order, ratio_order
from hbr_fast.sampler.uniform import SequentialOrder, UniformOrder, sequential_order, uniform_order
from hbr_fast.sampler.weighted import WeightedOrder, weighted_order

__all__ = [
    "PARALLEL_ROWS",
    "QuotaOrder",
    "Sampler",
    "SequentialOrder",
    "Shard",
    "Uneven",
    "UniformOrder",
    "WeightedOrder",
    "quota_order",
    "ratio_order",
    "sequential_order",
    "uniform_order",
    "weighted_order",
]
