"""Orders: which row stands at which position of an epoch, as pure functions of (seed, epoch, position).

An order has no hidden state: any process can compute any position of any epoch at any time. Our `Loader` takes an order
directly; `orders/torch_sampler.py` adapts one to torch's `DataLoader`.
"""

from hbr_fast.orders.batch_quota import BatchQuotaOrder, batch_quota_order
from hbr_fast.orders.order import PARALLEL_ROWS, Sampler, Shard, Uneven
from hbr_fast.orders.quota import QuotaOrder, quota_order, ratio_order
from hbr_fast.orders.shards import ShardOrder, shard_order
from hbr_fast.orders.uniform import SequentialOrder, UniformOrder, sequential_order, uniform_order
from hbr_fast.orders.weighted import WeightedOrder, weighted_order

__all__ = [
    "PARALLEL_ROWS",
    "BatchQuotaOrder",
    "QuotaOrder",
    "Sampler",
    "SequentialOrder",
    "Shard",
    "ShardOrder",
    "Uneven",
    "UniformOrder",
    "WeightedOrder",
    "batch_quota_order",
    "quota_order",
    "ratio_order",
    "sequential_order",
    "shard_order",
    "uniform_order",
    "weighted_order",
]
