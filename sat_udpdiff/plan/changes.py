"""Other settings and other numbers of GPUs: what could take less memory, what room could buy.

Whether one goes together with the rest of a configuration, and what it does, is for `advice.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sat_udpdiff.config import (
    Config,
    follows_fixed_noise,
    global_batch,
    makes_sample_videos,
)
from sat_udpdiff.config_checks import keep_global_batch, validate
from sat_udpdiff.plan.machine import Machine, Situation
from sat_udpdiff.plan.scaling import layout_of
from sat_udpdiff.plan.tables import RECOMPUTED_LAYERS

_MOST_GPUS = 64
_SMALL_BUCKET = 50_000_000
_LAYERS_LESS_KEPT = {"none": ("selective", "full"), "selective": ("full",), "full": ()}
_LAYERS_MORE_KEPT = {"full": ("selective", "none"), "selective": ("none",), "none": ()}
_BATCH_FACTORS = (2, 3, 4, 6, 8, 12, 16)
_ENCODE_BEFORE = "encode once before: python -m data_loaders.latents"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Other settings, or other GPUs."""

    settings: tuple[tuple[str, object], ...] = ()
    """(dotted key, value)."""
    gpus: int | None = None
    nodes: int | None = None
    """That so many GPUs lie on, where the plan knows of nodes."""
    price: str = ""
    """What it costs besides time, or needs; empty where nothing."""

    @property
    def text(self) -> str:
        """As the user would write it."""
        words = [f"{key}={_written(value)}" for key, value in self.settings]
        words += [f"--nodes {self.nodes}"] if self.nodes else []
        return " ".join([*words, *([f"--gpus {self.gpus}"] if self.gpus else [])])

    @property
    def keys(self) -> frozenset[str]:
        """What it sets."""
        return frozenset([key for key, _ in self.settings] or ["--gpus"])

    @property
    def takes_host_memory(self) -> bool:
        """Whether it moves anything from the GPU to the host."""
        return "train.offload" in self.keys

    def apply(self, situation: Situation) -> Situation:
        """The situation with this change.

        Raises:
            ConfigError: It does not go together with other settings.
        """
        config, machine = situation.config, situation.machine
        for key, value in self.settings:
            config = _with_value(config, key, value)
        validate(config)
        if self.gpus:
            machine = replace(machine, gpus=self.gpus)
        if self.nodes and machine.cluster:
            machine = replace(machine, cluster=replace(machine.cluster, nodes=self.nodes))
        layout_of(config, machine=machine)
        config = keep_global_batch(config, processes=machine.gpus)
        return Situation(config=config, machine=machine)


ADAPTERS = Change(
    settings=(("lora.rank", 64), ("optimizer.lr", 1e-4)),
    price="trains adapters in place of all weights",
)


def savings(situation: Situation) -> Iterator[Change]:
    """What could take less memory, weaker changes of a key before stronger ones."""
    config, machine = situation.config, situation.machine
    if config.data.source == "video":
        yield from _cheaper_encoding(config)
    yield from _cheaper_steps(config)
    for mode in _LAYERS_LESS_KEPT[config.model.activation_checkpointing]:
        yield Change(settings=(("model.activation_checkpointing", mode),))
    if machine.gpus > 1:
        for stage in range(config.train.zero_stage + 1, 4):
            price = "gathers weights in every pass" if stage == 3 else ""
            yield Change(settings=(("train.zero_stage", stage),), price=price)
    if config.train.offload == "none":
        price = "optimizer in host memory, its step on the CPU"
        yield Change(settings=(("train.offload", "optimizer"),), price=price)
    if config.train.offload != "weights":
        settings = (("train.zero_stage", 3), ("train.offload", "weights"))
        yield Change(settings=settings, price="optimizer and weights in host memory")
    for name in ("sequence", "tensor"):
        yield from _shared_samples(config, machine, name=name)
    yield from _more_gpus(machine)


def _shared_samples(config: Config, machine: Machine, *, name: str) -> Iterator[Change]:
    """More GPUs on the tokens of each sample (`sequence`), or on the weights (`tensor`)."""
    key, now = f"parallel.{name}_size", getattr(config.parallel, f"{name}_size")
    for factor in (2, 4, 8):
        size = factor * config.parallel.size
        if machine.gpus % size == 0:
            batch = global_batch(config, processes=machine.gpus) // factor
            price = f"{size} GPUs on each sample" + (
                "" if config.train.global_batch else f": a global batch of {batch}"
            )
            yield Change(settings=((key, factor * now),), price=price)


def _cheaper_steps(config: Config) -> Iterator[Change]:
    train = config.train
    if train.precision == "fp32":
        yield Change(settings=(("train.precision", "bf16"),), price="rounds weights and tokens")
    if config.ema.enabled:
        yield Change(settings=(("ema.enabled", False),), price="no averaged weights")
    if makes_sample_videos(config):
        price = "no sample videos" + (" and losses" if follows_fixed_noise(config) else "")
        yield Change(settings=(("validation.every_steps", 0),), price=price)
    if train.reduce_bucket_elements > _SMALL_BUCKET:
        yield Change(settings=(("train.reduce_bucket_elements", _SMALL_BUCKET),))
    if train.micro_batch_size > 1:
        parts = train.micro_batch_size * train.accumulation_steps
        settings = (("train.micro_batch_size", 1), ("train.accumulation_steps", parts))
        yield Change(settings=settings, price="the same batch, one sample at a time")
    if train.precision == "bf16" and train.zero_stage == 2 and train.accumulation_steps == 1:
        # Sums in fp32, of which the optimizer needs no copies.
        price = "two passes per step: twice the batch in twice the time"
        yield Change(settings=(("train.accumulation_steps", 2),), price=price)


def _cheaper_encoding(config: Config) -> Iterator[Change]:
    yield Change(
        settings=(("data.source", "latents"),),
        price=_ENCODE_BEFORE,
    )
    for key in ("text", "codec"):
        if getattr(config, key).dtype == "fp32":
            yield Change(settings=((f"{key}.dtype", "bf16"),))
    if not config.codec.slicing:
        yield Change(settings=(("codec.slicing", True),))
    if not config.codec.tiling:
        price = "latents differ a little along the tiles"
        yield Change(settings=(("codec.tiling", True),), price=price)
    if config.codec.encode_chunks == "whole":
        price = "latents differ from those of the released training"
        yield Change(settings=(("codec.encode_chunks", "diffusers"),), price=price)


def _more_gpus(machine: Machine) -> Iterator[Change]:
    count = machine.gpus * 2
    while count <= _MOST_GPUS:
        price = "a larger global batch, or fewer accumulation steps"
        yield Change(gpus=count, nodes=_nodes_of(machine, gpus=count), price=price)
        count *= 2


def _nodes_of(machine: Machine, *, gpus: int) -> int | None:
    """Nodes of the machine's kind for so many GPUs; None where nobody told of nodes."""
    if machine.cluster is None:
        return None
    return max(1, gpus * machine.cluster.nodes // machine.gpus)


def luxuries(situation: Situation) -> Iterator[Sequence[Change]]:
    """What could be had, for each setting from little to much."""
    config, machine = situation.config, situation.machine
    if config.data.source == "video":
        yield [Change(settings=(("data.source", "latents"),), price=_ENCODE_BEFORE)]
    yield [
        Change(
            settings=(("model.activation_checkpointing", mode),),
            price=f"recomputes {RECOMPUTED_LAYERS[mode]}",
        )
        for mode in _LAYERS_MORE_KEPT[config.model.activation_checkpointing]
    ]
    batches = (config.train.micro_batch_size * factor for factor in _BATCH_FACTORS)
    larger = "" if config.train.global_batch else "; a larger global batch"
    yield [
        Change(settings=(("train.micro_batch_size", batch),), price=f"fills the GPU better{larger}")
        for batch in batches
    ]
    if not config.ema.enabled:
        yield [Change(settings=(("ema.enabled", True),), price="buys averaged weights")]
    if config.train.offload != "none":
        yield [Change(settings=(("train.offload", "none"),), price="nothing in host memory")]
    if config.parallel.size > 1:
        keys = ("parallel.sequence_size", "parallel.tensor_size")
        sizes = (config.parallel.sequence_size, config.parallel.tensor_size)
        settings = tuple((key, 1) for key, size in zip(keys, sizes, strict=True) if size > 1)
        yield [Change(settings=settings, price="a GPU for each sample")]
    parts = [2**n for n in range(1, machine.gpus.bit_length())]
    also = "" if config.train.global_batch else " and of the global batch"
    yield [
        Change(
            gpus=machine.gpus // part,
            nodes=_nodes_of(machine, gpus=machine.gpus // part),
            price=f"1/{part} of the GPUs{also}",
        )
        for part in parts
    ]


def rarer_steps(config: Config) -> Sequence[Change]:
    """Gradients of so many times the samples sent at once: for slow networks."""
    found = []
    for factor in (2, 4, 8):
        accumulation = factor * config.train.accumulation_steps
        settings = (("train.zero_stage", 1), ("train.accumulation_steps", accumulation))
        price = f"{factor} times the global batch, its gradients sent once"
        found.append(Change(settings=settings, price=price))
    return found


def _with_value(config: Config, key: str, value: object) -> Config:
    section, name = key.split(".")
    changed: dict[str, Any] = {name: value}
    return replace(config, **{section: replace(getattr(config, section), **changed)})


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
