"""Time that a step takes longer where the optimizer, or the weights, lie in host memory.

`zero.py` says how much lies there. All of it is counted as time in which the GPU waits.
"""

from __future__ import annotations

from sat_udpdiff.config import Config
from sat_udpdiff.plan.sizes import BYTES, share_of_rank

PINNED_RATE = 20e9
"""Bytes per second between a GPU and pinned memory of its host. Assumed: PCIe 4, 16 lanes."""
HOST_MEMORY_RATE = 150e9
"""Bytes per second that the processors of a node read and write, all together. Assumed: two sockets
with 8 channels of DDR4-3200 each, a good third of their 410 GB/s."""
# Of each number: gradient, weight and two moments read, the latter three written (AdamW); gradient
# clipped, that is read and written; the new weight read to be rounded.
_BYTES_OF_STEP = 28 + 8 + 4


def offload_seconds(config: Config, *, world_size: int, gpus_of_node: int) -> float:
    """Seconds of a step for what `train.offload` moves, and for AdamW on the CPU; 0 without it.

    Gradients go to the host in fp32 at the end, and in the training precision, there and back, for
    every earlier micro-batch; new weights come back. `weights` sends each GPU's share of them for
    the forward and for the backward pass of every micro-batch besides.

    Args:
        config: Any configuration.
        world_size: GPUs of the run.
        gpus_of_node: Those that share a host.
    """
    train = config.train
    if train.offload == "none":
        return 0.0
    parameters, width = share_of_rank(config), BYTES[train.precision]
    ranks = world_size // config.parallel.tensor_size
    shard, earlier = parameters.trained / ranks, train.accumulation_steps - 1
    moved = shard * (4 + width + 2 * width * earlier)
    if train.offload == "weights":
        moved += 2 * train.accumulation_steps * width * parameters.total / ranks
    stepped = gpus_of_node * shard * (_BYTES_OF_STEP + width + (12 if config.ema.enabled else 0))
    return moved / PINNED_RATE + stepped / HOST_MEMORY_RATE
