"""The one door to SwissArmyTransformer (SAT): what it needs before it can be used, then its names.

`import sat` wants triton, which CPU builds of torch lack, for a rotary kernel that CogVideoX never
calls; its linears ask for a model-parallel group when they are built and in every backward pass.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
import warnings
from typing import Any

import torch
import torch.distributed as dist

_TRITON_MODULE = "sat.model.position_embedding.triton_rotary_embeddings"


class _MissingRotaryKernel:
    """Stands for SAT's triton kernel; networks here rotate in plain torch (model/positions.py)."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise ImportError("SAT's FastRotaryEmbedding needs triton, which is not installed")


def _register_rotary_without_triton() -> None:
    if importlib.util.find_spec("triton") is None and _TRITON_MODULE not in sys.modules:
        module = types.ModuleType(_TRITON_MODULE)
        module.FastRotaryEmbedding = _MissingRotaryKernel  # type: ignore[attr-defined]
        sys.modules[_TRITON_MODULE] = module


_register_rotary_without_triton()
if not torch.accelerator.is_available():
    # SAT imports deepspeed, which otherwise warns that it found no accelerator.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# SAT reports every group it makes at INFO, and reads its level when it is imported.
os.environ.setdefault("SAT_LOGLEVEL", "WARNING")
with warnings.catch_warnings():
    # torch.jit.script in SAT's gelu and in deepspeed; neither is used here.
    warnings.simplefilter("ignore", DeprecationWarning)
    from sat import mpu
    from sat.model.base_model import BaseMixin, BaseModel, non_conflict
    from sat.model.transformer import BaseTransformer
    from sat.mpu import ColumnParallelLinear, RowParallelLinear

__all__ = [
    "BaseMixin",
    "BaseModel",
    "BaseTransformer",
    "ColumnParallelLinear",
    "RowParallelLinear",
    "ensure_model_parallel",
    "model_parallel_group",
    "mpu",
    "non_conflict",
]


def ensure_model_parallel(size: int = 1) -> None:
    """Give SAT model-parallel groups of `size`, and a process group of one where there is none.

    The process group needs no environment variable, port or file: a program of one process
    (sampling, a test) builds a network without knowing that SAT is distributed inside. Programs
    that train call `distributed.init_distributed` first, and then their process group is used.

    SAT has one group at a time, which its linears look up when they run. All processes call this.
    Networks are built with groups of one, and cut afterwards (`parallel/tensor.py`).
    """
    if not dist.is_initialized():
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        # Groups that were made in a process group which is gone are unusable.
        mpu.destroy_model_parallel()
    if mpu.model_parallel_is_initialized() and mpu.get_model_parallel_world_size() != size:
        mpu.destroy_model_parallel()
    if not mpu.model_parallel_is_initialized():
        mpu.initialize_model_parallel(size)


def model_parallel_group() -> dist.ProcessGroup:
    """SAT's group: the processes that hold one network together."""
    group: Any = mpu.get_model_parallel_group()
    return group
