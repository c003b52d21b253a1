"""Checkpoints: complete or absent, and independent of the number of ranks.

    checkpoints/step_00000100/network.safetensors      fp32 weights by parameter name
                              exp_avg.safetensors      first moments of AdamW
                              exp_avg_sq.safetensors   second moments
                              ema.safetensors          averaged weights, if any
                              config.yaml              resolved configuration
                              state.json               counters, and the size of every file
    checkpoints/latest                                 name of the newest one

A folder is written under another name, flushed to disk and renamed; `latest` moves last. Nothing is
pickled. Every tensor is whole and named, so a run may resume on another number of ranks or another
ZeRO stage. Each kind of tensor is gathered to and written by a rank of its own.

With LoRA the files hold what is trained, and in their metadata a fingerprint of the rest.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sat_udpdiff.config import Config
from sat_udpdiff.config_io import save_config
from sat_udpdiff.distributed import Place
from sat_udpdiff.training import ranks
from sat_udpdiff.training.ema import EMA
from sat_udpdiff.training.engine import MASTERS, MOMENTS
from sat_udpdiff.training.state import TrainState
from sat_udpdiff.weights.run_folder import (
    BASE_FINGERPRINT,
    CHECKPOINTS,
    CONFIG_FILE,
    EMA_FILE,
    FORMAT_VERSION,
    LATEST,
    NETWORK_FILE,
    STATE_FILE,
    STEP_PREFIX,
    Checkpoint,
    CheckpointError,
    step_folder,
)

EMA_KIND = "ema"
_STAGING = ".staging_"
_PACKAGES = ("torch", "deepspeed", "safetensors", "SwissArmyTransformer")


@runtime_checkable
class Tensors(Protocol):
    """What checkpoints need of `TrainEngine`, which documents it."""

    base_sha256: str

    @property
    def num_parameters(self) -> int: ...  # noqa: D102
    def masters(self) -> list[Tensor]: ...  # noqa: D102
    def gather(self, kind: str, *, keep: bool) -> dict[str, Tensor]: ...  # noqa: D102
    def scatter(self, kind: str, tensors: Mapping[str, Tensor]) -> None: ...  # noqa: D102
    def counters(self) -> dict[str, float]: ...  # noqa: D102
    def set_counters(self, counters: Mapping[str, float]) -> None: ...  # noqa: D102


def save(
    engine: Tensors, *, ema: EMA | None, state: TrainState, config: Config, place: Place
) -> Path:
    """Write a checkpoint; every rank calls it, and all succeed or all raise.

    Raises:
        CheckpointError: It could not be written. Older checkpoints are as they were.
    """
    run = Path(config.run.output)
    target = step_folder(run, step=state.step)
    staging = target.with_name(_STAGING + target.name)
    with _all_or_none(staging, place=place):
        if place.is_main:
            _remove_staging(target.parent)
            staging.mkdir(parents=True)
            _check_space(run, engine=engine, has_ema=ema is not None)
    kinds = [MASTERS, *MOMENTS, *([EMA_KIND] if ema else [])]
    for first in range(0, len(kinds), place.world_size):
        # One kind per rank at a time: gathering is joint, writing is side by side.
        mine: tuple[str, dict[str, Tensor]] | None = None
        for writer, kind in enumerate(kinds[first : first + place.world_size]):
            full = _gather(engine, kind=kind, ema=ema, keep=writer == place.rank)
            mine = (kind, full) if full else mine
        with _all_or_none(staging, place=place):
            if mine is not None:
                facts = {"step": str(state.step)}
                if engine.base_sha256:
                    facts[BASE_FINGERPRINT] = engine.base_sha256
                _write_tensors(staging / f"{mine[0]}.safetensors", mine[1], facts=facts)
    with _all_or_none(staging, place=place):
        if place.is_main:
            content = {
                "version": FORMAT_VERSION,
                "state": state.to_values(),
                "counters": engine.counters(),
                "ema_updates": ema.num_updates if ema else 0,
                "world_size": place.world_size,
                "packages": {name: metadata.version(name) for name in _PACKAGES},
                "git_commit": _git_commit(),
            }
            _finish(staging, target=target, content=content, config=config)
            _prune(target, keep_last=config.checkpoint.keep_last)
    return target


def _git_commit() -> str | None:
    """Of the checkout that this file lies in; None where it is installed otherwise."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:  # no git
        return None
    return done.stdout.strip() or None


class _all_or_none:  # noqa: N801 - reads as a statement
    """Run a block that only some ranks fill; if it fails on one, all clean up and raise.

    No communication belongs inside, so a rank that fails leaves no other waiting.
    """

    def __init__(self, staging: Path, *, place: Place) -> None:
        self._staging, self._place = staging, place

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not isinstance(error, OSError | SafetensorError | CheckpointError):
            return
        message = None if error is None else _explain(error, staging=self._staging)
        messages = ranks.gather(message, place=self._place)
        failures = [text for text in messages if text is not None]
        if failures:
            if self._place.is_main:
                shutil.rmtree(self._staging, ignore_errors=True)
            raise CheckpointError(failures[0]) from error


def _explain(error: BaseException, *, staging: Path) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    written = sum(file.stat().st_size for file in staging.glob("*"))
    free = shutil.disk_usage(next(p for p in staging.parents if p.exists())).free
    reason = getattr(error, "strerror", None) or str(error)
    return (
        f"{staging.parent}: cannot write the checkpoint {staging.name.removeprefix(_STAGING)}: "
        f"{reason} ({written:,} bytes were written, {free:,} are free); "
        f"{_what_is_kept(staging.parent)}"
    )


def _what_is_kept(checkpoints: Path) -> str:
    kept = sorted(path.name for path in checkpoints.glob(f"{STEP_PREFIX}*"))
    return f"{', '.join(kept)} kept" if kept else "there is no older checkpoint"


def _check_space(run: Path, *, engine: Tensors, has_ema: bool) -> None:
    num_kinds = 1 + len(MOMENTS) + has_ema
    need = 4 * num_kinds * engine.num_parameters
    free = shutil.disk_usage(run).free
    if need > free:
        raise CheckpointError(
            f"{run}: no space left for a checkpoint: needs {need:,} bytes, {free:,} are free; "
            f"{_what_is_kept(run / CHECKPOINTS)}; free some space or lower checkpoint.keep_last"
        )


def _gather(engine: Tensors, *, kind: str, ema: EMA | None, keep: bool) -> dict[str, Tensor]:
    if kind != EMA_KIND or ema is None:
        return engine.gather(kind, keep=keep)
    ema.swap(engine.masters())
    try:
        return engine.gather(MASTERS, keep=keep)
    finally:
        ema.swap(engine.masters())


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], *, facts: dict[str, str]) -> None:
    save_file(dict(tensors), path, metadata={"format": "pt", **facts})
    path.chmod(0o644)  # safetensors makes files that their owner alone may read
    _flush(path)


def _finish(staging: Path, *, target: Path, content: dict[str, Any], config: Config) -> None:
    save_config(config, staging / CONFIG_FILE)
    content["files"] = {file.name: file.stat().st_size for file in sorted(staging.iterdir())}
    (staging / STATE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    for name in (CONFIG_FILE, STATE_FILE):
        _flush(staging / name)
    _flush(staging)
    if target.exists():  # of the same step, damaged: a complete one would have been resumed
        shutil.rmtree(target)
    staging.rename(target)
    _flush(target.parent)
    pointer = target.parent / f"{_STAGING}{LATEST}"
    pointer.write_text(target.name + "\n", encoding="utf-8")
    _flush(pointer)
    pointer.replace(target.parent / LATEST)
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Ask the disk to keep it; a rename can reach the disk before the file's content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(newest: Path, *, keep_last: int) -> None:
    """Delete all but `keep_last` checkpoints; what lies after `newest` is no part of this run."""
    older = sorted(p for p in newest.parent.glob(f"{STEP_PREFIX}*") if p.name < newest.name)
    surplus = max(0, len(older) - (keep_last - 1)) if keep_last else 0
    for old in older[:surplus]:
        shutil.rmtree(old)


def _remove_staging(folder: Path) -> None:
    """Remove what a save that was killed left behind."""
    for leftover in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def restore(found: Checkpoint, *, engine: Tensors, ema: EMA | None) -> TrainState:
    """Give engine and EMA the tensors of a checkpoint, bit for bit; returns the counters."""
    content, folder = found.content, found.folder
    if ema is not None and EMA_FILE in content["files"]:
        engine.scatter(MASTERS, _Lazy(folder / EMA_FILE))
        ema.restore(engine.masters(), num_updates=content["ema_updates"])
    engine.scatter(MASTERS, _Lazy(folder / NETWORK_FILE))
    if ema is not None and EMA_FILE not in content["files"]:
        ema.restore(engine.masters(), num_updates=0)  # switched on after this checkpoint
    for kind in MOMENTS:
        engine.scatter(kind, _Lazy(folder / f"{kind}.safetensors"))
    engine.set_counters(content["counters"])
    return TrainState(**content["state"])


class _Lazy(Mapping[str, Tensor]):
    """Tensors of a safetensors file, each read when asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = safe_open(path, framework="pt")
        self._names = set(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise CheckpointError(f"{self._path}: no tensor {name}")
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
