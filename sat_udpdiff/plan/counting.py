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

    Tensors of any device count, those of the meta device with the bytes they would have. What a
    kernel needs for itself is not seen, and neither is what the allocator rounds up.

    Attributes:
        held: Bytes that are alive now.
        peak: The most that was alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count the storages that its results brought with them."""
        inputs = tree_leaves((args, kwargs or {}))
        before = {storage_id(x) for x in inputs if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and storage_id(x) not in self._seen | before:
                self._hold(x)
        self.peak = max(self.peak, self.held)
        return out

    def _hold(self, x: Tensor) -> None:
        storage, key = x.untyped_storage(), storage_id(x)
        size = storage.nbytes()
        self._seen.add(key)
        self.held += size

        def release() -> None:
            self.held -= size
            self._seen.discard(key)

        weakref.finalize(storage, release)
