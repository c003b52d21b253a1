"""Batches in an order that depends on (seed, sample number) alone.

The state of the data is one integer: how many samples the whole job has consumed. Rank r takes
slots r * b .. r * b + b - 1 of every world_size * b consecutive numbers, so 2 ranks of 1 see what
1 rank of 2 sees, and `start` costs the same for any value.

PyAV decodes clips in processes of their own, so that nothing in a video file can end or stop the
training process; a thread joins them to batches, ahead of the consumer. DALI works in that thread.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol, runtime_checkable

import torch

from data_loaders.batches import AnyBatch, ClipJoiner, Joiner
from data_loaders.damage import DamageCount, DamagedClipsError
from data_loaders.examples import ExampleMaker, ExampleSource, ExampleTask, place_of
from data_loaders.order import size_at
from data_loaders.reader_pool import LostReaderError, ReaderPool
from data_loaders.schema import DataError
from sat_udpdiff.config import Config

_log = logging.getLogger(__name__)

_FETCH_AHEAD = 512
"""Samples ahead of use at which shards of an address begin to be copied to this machine."""

_MOST_REPLACEMENTS = 16
"""Clips tried in place of a damaged one before the run stops."""


@runtime_checkable
class _Pool(Protocol):
    def submit(self, task: ExampleTask) -> "Future[Any]": ...

    def close(self) -> None: ...


class _Inline:
    """Makes examples in this thread, when they are asked for."""

    def __init__(self, make: Callable[[ExampleTask], Any]) -> None:
        self._make = make

    def submit(self, task: ExampleTask) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(self._make(task))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass


class _Threads:
    """Makes examples in threads: for reading alone, which needs no process."""

    def __init__(self, make: Callable[[ExampleTask], Any], *, num_workers: int) -> None:
        self._make = make
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="data")

    def submit(self, task: ExampleTask) -> "Future[Any]":
        return self._threads.submit(self._make, task)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def batch_numbers(
    micro_step: int, *, start: int, micro_batch_size: int, place_rank: int, world_size: int
) -> range:
    """Sample numbers of one rank's micro-batch, counted from `start`.

    With m = step * accumulation_steps + micro-step: start + (m * world_size + rank) * b + slot.
    """
    first = start + (micro_step * world_size + place_rank) * micro_batch_size
    return range(first, first + micro_batch_size)


class Batches(Iterator[AnyBatch]):
    """Endless micro-batches of one rank; `accumulation_steps` of them make an optimizer step.

    The data are opened and checked at once, before the first batch is asked for. `close` ends the
    processes and threads; so does the end of a `with` block.

    Args:
        config: Data, task shares, batch size, seed.
        place_rank: Data-parallel rank.
        world_size: Data-parallel ranks.
        start: Samples that the whole job has consumed.
        device: Where the clips go.

    Raises:
        DataError: The data are not whole or lack what the tasks need; later, too many damaged.
    """

    def __init__(
        self,
        config: Config,
        *,
        place_rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= place_rank < world_size or start < 0:
            raise ValueError(
                "expected 0 <= place_rank < world_size and start >= 0, got "
                f"{place_rank}, {world_size} and {start}"
            )
        if config.data.buckets and start % config.train.micro_batch_size:
            raise DataError(
                f"data.buckets: the run stands at sample {start}, within a batch of one size; "
                f"expected a train.micro_batch_size that divides it, got "
                f"{config.train.micro_batch_size}"
            )
        self._config, self._device = config, torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._source, self._joiner = _open(config, device=self._device)
        self.damage = DamageCount(
            source=self._source.name(),
            num_clips=len(self._source.order),
            allowed=config.data.max_bad_share,
        )
        """Clips that could not be used so far."""
        self._micro_steps = (
            batch_numbers(
                m,
                start=start,
                micro_batch_size=config.train.micro_batch_size,
                place_rank=place_rank,
                world_size=world_size,
            )
            for m in count()
        )
        self._pool: _Pool | None = None
        self._waiting: deque[list[_Pending]] = deque()
        self._ready: queue.Queue[object] = queue.Queue()
        self._room = threading.Semaphore(1)
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._joining: tuple[float, list[str]] = 0.0, []
        """Since when which clips are being joined."""

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> AnyBatch:
        if self._is_closed.is_set():
            raise ValueError("the batches were closed")
        if self._pool is None:
            self._pool = _start_pool(self._source, config=self._config)
        if self._config.data.num_workers == 0:
            return self._joiner.finish(self._next_joined())
        if self._thread is None:
            self._thread = threading.Thread(target=self._run_ahead, name="data-join", daemon=True)
            self._thread.start()
        joined = self._wait_for_batch()
        self._room.release()
        if isinstance(joined, _Failure):
            self.close()
            raise joined.error
        return self._joiner.finish(joined)

    def process_ids(self) -> list[int]:
        """Of the processes that decode."""
        return self._pool.process_ids() if isinstance(self._pool, ReaderPool) else []

    def close(self) -> None:
        """End what runs in the background, whatever it does."""
        self._is_closed.set()
        if self._pool is not None:
            self._pool.close()
        if self._thread is not None and not self._is_joining_too_long():
            self._thread.join()
            self._joiner.close()

    def _wait_for_batch(self) -> object:
        while True:
            try:
                return self._ready.get(timeout=0.5)
            except queue.Empty:
                if self._is_joining_too_long():
                    keys = ", ".join(self._joining[1])
                    self._is_closed.set()
                    raise DataError(
                        f"{self.damage.source}: decoding {keys} did not end within "
                        f"data.decode_seconds={self._config.data.decode_seconds:g}, and DALI works "
                        "in this process; data.decoder=pyav decodes in processes that can be ended"
                    ) from None

    def _is_joining_too_long(self) -> bool:
        since, keys = self._joining
        return bool(keys) and time.monotonic() - since > self._config.data.decode_seconds

    def _join(self, examples: list[tuple[ExampleTask, Any]]) -> object:
        self._joining = time.monotonic(), [example.facts.key for _, example in examples]
        try:
            return self._joiner.join([example for _, example in examples])
        finally:
            self._joining = 0.0, []

    def _run_ahead(self) -> None:
        """The thread that keeps one joined batch ready."""
        if self._device.type == "cuda":
            # A thread begins with device 0; pinning there would take memory of it for every rank.
            torch.cuda.set_device(self._device)
        while not self._is_closed.is_set():
            # Before it is joined: a second batch of floats would wait in memory otherwise.
            if not self._room.acquire(timeout=0.1):
                continue
            try:
                joined = self._next_joined()
            except BaseException as error:
                joined = _Failure(error=error)
            self._ready.put(joined)
            if isinstance(joined, _Failure):
                return

    def _next_joined(self) -> object:
        """The next micro-batch, with the examples of those after it on their way."""
        data = self._config.data
        ahead = -(-data.num_workers * data.prefetch // self._config.train.micro_batch_size)
        while len(self._waiting) <= ahead:
            numbers = next(self._micro_steps)
            self._source.fetch_ahead(numbers[0] + _FETCH_AHEAD)
            size = size_at(numbers[0], seed=self._config.seed, data=data)
            tasks = (ExampleTask(number=n, attempt=0, size=size) for n in numbers)
            self._waiting.append([self._submit(task) for task in tasks])
        examples = [self._settle(pending) for pending in self._waiting.popleft()]
        while True:
            try:
                return self._join(examples)
            except DamagedClipsError as error:
                examples = [
                    self._settle(self._replace(task, reason=error.reasons[example.facts.key]))
                    if example.facts.key in error.reasons
                    else (task, example)
                    for task, example in examples
                ]

    def _submit(self, task: ExampleTask) -> "_Pending":
        assert self._pool is not None
        # Here, as a long way to go is no fault of the clip and not under its deadline.
        self._source.fetch(place_of(task, order=self._source.order).index)
        return _Pending(task=task, future=self._pool.submit(task))

    def _settle(self, pending: "_Pending") -> tuple[ExampleTask, Any]:
        """The example, or that of the next clip of the data set which is whole."""
        while True:
            try:
                return pending.task, pending.future.result()
            except LostReaderError as error:
                pending = self._retry_once(pending, reason=str(error))
            except DataError as error:
                pending = self._replace(pending.task, reason=str(error))

    def _retry_once(self, pending: "_Pending", *, reason: str) -> "_Pending":
        """Ask again: a process may also be ended from outside, and a disk may stall."""
        if pending.is_second_try:
            return self._replace(pending.task, reason=f"reading it failed twice: {reason}")
        place = place_of(pending.task, order=self._source.order)
        _log.warning("clip %s: %s; trying again", self._source.key(place.index), reason)
        return replace(self._submit(pending.task), is_second_try=True)

    def _replace(self, task: ExampleTask, *, reason: str) -> "_Pending":
        """Count the clip of a task as damaged and ask for the one after it."""
        place = place_of(task, order=self._source.order)
        self.damage.note(self._source.key(place.index), reason)
        if task.attempt == _MOST_REPLACEMENTS:
            raise DataError(
                f"{self.damage.source}: {_MOST_REPLACEMENTS + 1} clips in a row are damaged: "
                f"{self.damage.report()}"
            )
        return self._submit(replace(task, attempt=task.attempt + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    task: ExampleTask
    future: "Future[Any]"
    is_second_try: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    error: BaseException


def _open(config: Config, *, device: torch.device) -> tuple[ExampleSource, Joiner]:
    """What makes examples of the configured data, and what joins them."""
    if config.data.source == "latents":
        # Here, as in the other branches, what is not configured is not loaded.
        from data_loaders.latent_cache import LatentJoiner, LatentSource

        joiner = LatentJoiner(device, scale_factor=config.codec.scale_factor)
        return LatentSource(config), joiner
    if config.data.decoder == "dali":
        from data_loaders.dali_examples import DaliJoiner
        from data_loaders.raw_examples import RawExampleMaker

        kind = "gpu" if device.type == "cuda" else "cpu"
        return RawExampleMaker(config, device=kind), DaliJoiner(config, device=device)
    return ExampleMaker(config), ClipJoiner(device)


def _start_pool(source: ExampleSource, *, config: Config) -> _Pool:
    data = config.data
    if data.num_workers == 0:
        return _Inline(source)
    if data.source == "latents":
        return _Threads(source, num_workers=data.num_workers)
    return ReaderPool(source, num_workers=data.num_workers, deadline_seconds=data.decode_seconds)
