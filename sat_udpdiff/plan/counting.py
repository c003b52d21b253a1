"""Bytes of tensors, counted while code runs; on the meta device without allocating any."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def storage_id(x: Tensor) -> int:
    """What tells one storage from another."""
    return x.untyped_storage()._cdata


class TensorBytes(TorchDispatchMode):
    """Counts the storages of tensors that are made inside, until they are freed.

    What a kernel needs for itself is not seen, and neither is what the allocator rounds up.

    Args:
        device_type: Of the tensors that count. Those of `meta` count what they would take.

    Attributes:
        held: Bytes that are alive now.
        peak: The most that was alive at once.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type
        self.held = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count the storages that its results brought with them."""
        inputs = tree_leaves((args, kwargs or {}))
        before = {storage_id(x) for x in inputs if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.device.type == self.device_type:
                self._hold(x, known=before)
        self.peak = max(self.peak, self.held)
        return out

    def _hold(self, x: Tensor, *, known: set[int]) -> None:
        storage, key = x.untyped_storage(), storage_id(x)
        if key in self._seen or key in known:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.held += size

        def release() -> None:
            self.held -= size
            self._seen.discard(key)

        weakref.finalize(storage, release)
