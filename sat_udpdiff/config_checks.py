"""Checks of a configuration: values that are impossible, or that do not go together.

Every message names the key first, then what was expected and what came.
"""

from __future__ import annotations

import re
from dataclasses import replace
from operator import attrgetter
from typing import NoReturn, get_args

from sat_udpdiff.config import (
    GLOBAL_BATCH,
    TASKS,
    Config,
    ConfigError,
    LoraTarget,
    ParallelConfig,
    follows_fixed_noise,
    makes_sample_videos,
)
from sat_udpdiff.config_sources import setting_types
from sat_udpdiff.config_values import hint

__all__ = ["check_device", "keep_global_batch", "notes", "require", "validate"]

_WHAT_IT_IS = {
    "data.shards": "the folder of shards to read",
    "data.latents": "the folder that python -m data_loaders.latents made",
    "run.output": "the folder to write the run to",
}

_AT_LEAST_ONE = (
    "model.num_layers", "model.hidden_size", "model.num_heads", "model.time_embed_dim",
    "model.patch_size", "model.latent_channels", "model.text_dim", "model.text_length",
    "codec.spatial_compression", "codec.temporal_compression", "diffusion.num_train_timesteps",
    "colormap.location_grid", "data.num_frames", "data.height", "data.width", "data.prefetch",
    "data.bucket_run", "data.shuffle_shards", "data.shuffle_run",
    "train.steps", "train.micro_batch_size", "train.accumulation_steps",
    "train.reduce_bucket_elements", "parallel.tensor_size", "parallel.sequence_size",
    "checkpoint.every_steps", "log.every_steps",
    "validation.num_steps", "validation.clips", "sample.num_steps", "sample.sequence_size",
    "sample.tensor_size",
)  # fmt: skip
_AT_LEAST_ZERO = (
    "seed", "lora.rank", "data.num_workers", "data.recolourings", "data.cache_gb",
    "diffusion.dense_loss_weight", "optimizer.weight_decay",
    "optimizer.gradient_clipping", "optimizer.warmup_steps", "train.max_bad_steps",
    "train.global_batch", "checkpoint.keep_last", "checkpoint.keep_every",
    "log.heartbeat_seconds", "validation.every_steps", "sample.guidance_scale", "run.hang_minutes",
)  # fmt: skip
_ABOVE_ZERO = (
    "model.spatial_interpolation", "init.dense_scale", "codec.scale_factor", "diffusion.snr_shift",
    "data.fps", "data.decode_seconds", "optimizer.lr", "optimizer.eps",
)  # fmt: skip
_PROBABILITIES = (
    "data.long_caption_probability", "data.max_bad_share", "train.caption_dropout",
)  # fmt: skip
_NOT_EMPTY = ("codec.weights", "text.weights", "log.wandb_project")

# The seed travels through numpy and torch generators, which take 64 bits with a sign.
_LARGEST_SEED = 2**63 - 1
# Below it adapters hardly move within a run: B starts at zero.
_LEAST_LORA_RATE = 5e-5
# Distance of the corners of the RGB cube: sqrt(3) * 255.
_LARGEST_RGB_DISTANCE = 441.0


def validate(config: Config) -> None:
    """Raise ConfigError on the first setting that cannot work, whatever machine it runs on."""
    _check_ranges(config)
    _check_heads(config)
    _check_parallel(config)
    _check_offload(config)
    _check_patches(config)
    _check_lora(config)
    _check_clip(config)
    _check_buckets(config)
    _check_latents(config)
    _check_tasks(config)
    _check_task_signal(config)
    _check_sampling(config)
    _check_validation(config)
    _check_run(config)


def require(config: Config, *keys: str) -> None:
    """Raise ConfigError on the first of `keys` (such as `data.shards`) that was left empty."""
    for key in keys:
        if not attrgetter(key)(config):
            what = _WHAT_IT_IS.get(key, "a value")
            raise ConfigError(f"{key}: expected {what}, got nothing; add {key}=...", keys=(key,))


def check_device(config: Config, *, device: str) -> None:
    """Raise ConfigError when the training precision does not exist on `device` (its type)."""
    if config.train.precision == "fp16" and device == "cpu":
        _fail("train.precision", expected="fp32 or bf16 on a CPU", got="fp16")


def keep_global_batch(config: Config, *, processes: int) -> Config:
    """The configuration whose `accumulation_steps` make `train.global_batch` of so many ranks.

    Args:
        config: Comes back as it is where no global batch is asked for.
        processes: Of the run; those that share samples count once.

    Raises:
        ConfigError: It cannot be made of them; names the nearest that can.
    """
    train, ranks = config.train, max(1, processes // config.parallel.size)
    at_a_time = train.micro_batch_size * ranks
    if train.global_batch % at_a_time:
        below = train.global_batch // at_a_time * at_a_time
        nearest = f"{below}, {below + at_a_time}" if below else f"{at_a_time}"
        _fail(
            "train.global_batch",
            "train.micro_batch_size",
            expected=f"a multiple of {at_a_time} = {train.micro_batch_size} "
            f"(train.micro_batch_size) x {ranks} ranks (nearest: {nearest})",
            got=train.global_batch,
        )
    if not train.global_batch:
        return config
    steps = train.global_batch // at_a_time
    return replace(config, train=replace(train, accumulation_steps=steps))


def notes(config: Config) -> list[str]:
    """What is allowed but may surprise, one line each."""
    found = []
    if config.optimizer.warmup_steps > config.train.steps:
        found.append(
            f"the run ends within the warm-up: optimizer.warmup_steps="
            f"{config.optimizer.warmup_steps} is above train.steps={config.train.steps}, so the "
            f"learning rate never reaches optimizer.lr={config.optimizer.lr:g}"
        )
    if config.init.weights is None:
        found.append("init.weights is null: the network starts from random weights")
    if config.lora.rank and config.optimizer.lr < _LEAST_LORA_RATE:
        found.append(
            f"optimizer.lr={config.optimizer.lr:g} is a rate for all weights; adapters (lora.rank="
            f"{config.lora.rank}) are usually trained at 1e-4 to 1e-3"
        )
    if config.train.caption_dropout == 0:
        found.append("train.caption_dropout is 0: guidance will have no unconditional branch")
    return found


def _check_ranges(config: Config) -> None:
    for key in _AT_LEAST_ONE:
        _check(config, key, expected="at least 1", is_right=attrgetter(key)(config) >= 1)
    for key in _AT_LEAST_ZERO:
        _check(config, key, expected="at least 0", is_right=attrgetter(key)(config) >= 0)
    for key in _ABOVE_ZERO:
        _check(config, key, expected="a value above 0", is_right=attrgetter(key)(config) > 0)
    for key in _PROBABILITIES:
        share = attrgetter(key)(config)
        _check(config, key, expected="a share from 0 to 1", is_right=0 <= share <= 1)
    for key in _NOT_EMPTY:
        _check(config, key, expected="some text", is_right=bool(attrgetter(key)(config).strip()))
    _check(config, "seed", expected=f"at most {_LARGEST_SEED}", is_right=config.seed <= 2**63 - 1)
    _check(
        config,
        "init.weights",
        expected="a folder, a file, a hub id, `tiny` or null",
        is_right=config.init.weights != "",
    )
    _check(
        config,
        "optimizer.betas",
        expected="two values from 0 to below 1",
        is_right=all(0 <= beta < 1 for beta in config.optimizer.betas),
    )
    _check(config, "ema.decay", expected="0 to below 1", is_right=0 <= config.ema.decay < 1)
    _check(
        config,
        "colormap.min_distance",
        expected=f"0 to {_LARGEST_RGB_DISTANCE:g}",
        is_right=0 <= config.colormap.min_distance <= _LARGEST_RGB_DISTANCE,
    )
    _check(
        config,
        "colormap.location_grid",
        expected="1 to 11 (its palette has 124 colours)",
        is_right=1 <= config.colormap.location_grid <= 11,
    )
    _check(
        config,
        "model.dense_groups",
        expected="0 (RGB alone) or 1 (the data carry one dense map per sample)",
        is_right=config.model.dense_groups in (0, 1),
    )
    _check(
        config,
        "model.patch_size_t",
        expected="1 (CogVideoX 1.0) or 2 (1.5)",
        is_right=config.model.patch_size_t in (1, 2),
    )


def _check_heads(config: Config) -> None:
    model = config.model
    keys = ("model.hidden_size", "model.num_heads")
    if model.hidden_size % model.num_heads:
        _fail(*keys, expected=f"a multiple of num_heads={model.num_heads}", got=model.hidden_size)
    head_size = model.hidden_size // model.num_heads
    if model.positions == "rotary" and head_size % 16:
        # The head is cut 2:3:3 into time, row and column, each of an even number of features.
        _fail(
            *keys,
            expected="heads of a multiple of 16 for rotary positions (16 + 24 + 24 of 64)",
            got=f"{model.hidden_size} / {model.num_heads} = {head_size}",
        )
    if model.positions == "sincos" and model.hidden_size % 16:
        # Likewise over the whole width: 1/4 time, 3/8 column, 3/8 row, each half sine, half cosine.
        expected = "a multiple of 16 for sincos positions"
        _fail("model.hidden_size", "model.positions", expected=expected, got=model.hidden_size)


def _check_parallel(config: Config) -> None:
    parallel = config.parallel
    keys = ("parallel.sequence_size", "parallel.tensor_size")
    for section, sizes in (("parallel", parallel), ("sample", config.sample.parallel)):
        _check_sizes(config, sizes, section=section)
    if parallel.size > 1 and makes_sample_videos(config):
        # Each rank makes and judges videos of its own, and these ranks go through a network
        # together.
        expected = "none with several processes per sample; sample from the checkpoints instead"
        prompts = list(config.validation.prompts)
        _fail("validation.prompts", *keys, expected=expected, got=prompts)
    if parallel.tensor_size > 1 and config.train.zero_stage == 3:
        expected = "1 or 2 with parallel.tensor_size above 1"
        _fail("train.zero_stage", "parallel.tensor_size", expected=expected, got=3)


def _check_sizes(config: Config, sizes: ParallelConfig, *, section: str) -> None:
    heads, tensor = config.model.num_heads, f"{section}.tensor_size"
    if heads % sizes.size:
        fitting = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        keys = [f"{section}.sequence_size", tensor]
        # One that is 1 is not to blame.
        _fail(
            *(keys if sizes.sequence_size > 1 else reversed(keys)),
            "model.num_heads",
            expected=f"tensor_size x sequence_size to divide model.num_heads={heads} ({fitting})",
            got=f"tensor {sizes.tensor_size} x sequence {sizes.sequence_size}",
        )
    if sizes.tensor_size > 1 and config.lora.rank:
        expected = f"0 with {tensor} above 1: adapters are not cut; take {section}.sequence_size"
        _fail("lora.rank", tensor, expected=expected, got=config.lora.rank)


def _check_offload(config: Config) -> None:
    train = config.train
    if train.offload == "weights" and train.zero_stage != 3:
        expected = "none or optimizer with train.zero_stage below 3, which keeps whole weights"
        _fail("train.offload", "train.zero_stage", expected=expected, got=train.offload)


def _check_patches(config: Config) -> None:
    model = config.model
    if model.patch_size_t == 1:
        return
    if model.positions == "sincos":
        # No such CogVideoX exists, and diffusers' class cannot run one: it counts latent frames.
        expected = "1 with model.positions=sincos; patches over time come with rotary positions"
        _fail("model.patch_size_t", "model.positions", expected=expected, got=model.patch_size_t)
    if model.patch_size != 2:
        # Weights hold such patches as one vector, whose sides could not be told from a file.
        expected = "2 with model.patch_size_t=2, as in CogVideoX 1.5"
        _fail("model.patch_size", "model.patch_size_t", expected=expected, got=model.patch_size)


def _check_lora(config: Config) -> None:
    lora, width = config.lora, config.model.hidden_size
    if lora.rank > width:
        expected = f"at most model.hidden_size={width}, the full rank"
        _fail("lora.rank", "model.hidden_size", expected=expected, got=lora.rank)
    if lora.alpha is not None and lora.alpha <= 0:
        _fail("lora.alpha", expected="a value above 0, or null", got=lora.alpha)
    if not lora.targets or len(set(lora.targets)) != len(lora.targets):
        expected = f"one or more of {', '.join(get_args(LoraTarget))}, each once"
        _fail("lora.targets", expected=expected, got=list(lora.targets))
    if lora.weights == "":
        _fail("lora.weights", expected="a LoRA file, its folder, or null", got=lora.weights)
    if lora.weights is not None and not lora.rank:
        expected = "null with lora.rank=0; set lora.rank to the rank of the file"
        _fail("lora.weights", "lora.rank", expected=expected, got=lora.weights)


def _check_clip(config: Config) -> None:
    data = config.data
    _check_frames(config, data.num_frames, key="data.num_frames")
    _check_side(config, data.height, key="data.height")
    _check_side(config, data.width, key="data.width")


def _check_frames(config: Config, num_frames: int, *, key: str) -> None:
    step = config.codec.temporal_compression
    if (num_frames - 1) % step:
        below = (num_frames - 1) // step * step + 1
        _fail(
            key,
            "codec.temporal_compression",
            expected=f"{step}k + 1 frames (nearest: {below}, {below + step})",
            got=num_frames,
        )


def _check_side(config: Config, size: int, *, key: str) -> None:
    cell = config.codec.spatial_compression * config.model.patch_size
    if size % cell:
        below = size // cell * cell
        nearest = f"{below}, {below + cell}" if below else f"{cell}"
        _fail(
            key,
            "codec.spatial_compression",
            "model.patch_size",
            expected=f"a multiple of {cell} pixels (nearest: {nearest})",
            got=size,
        )


def _check_buckets(config: Config) -> None:
    data = config.data
    for bucket in data.buckets:
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", bucket)
        if match is None:
            expected = "sizes FRAMESxHEIGHTxWIDTH such as 49x480x720"
            _fail("data.buckets", expected=expected, got=bucket)
        num_frames, height, width = (int(part) for part in match.groups())
        _check_frames(config, num_frames, key="data.buckets")
        _check_side(config, height, key="data.buckets")
        _check_side(config, width, key="data.buckets")
    if len(data.bucket_weights) not in (0, len(data.buckets)):
        _fail(
            "data.bucket_weights",
            "data.buckets",
            expected=f"{len(data.buckets)}, one for each of data.buckets, or none",
            got=f"{len(data.bucket_weights)}: {list(data.bucket_weights)}",
        )
    weights = data.bucket_weights
    if weights and (min(weights) <= 0 or abs(sum(weights) - 1) > 1e-6):
        _fail("data.bucket_weights", expected="shares above 0 that add up to 1", got=list(weights))
    if data.buckets and data.bucket_run % config.train.micro_batch_size:
        _fail(
            "data.bucket_run",
            "train.micro_batch_size",
            expected=f"a multiple of train.micro_batch_size={config.train.micro_batch_size}",
            got=data.bucket_run,
        )


def _check_latents(config: Config) -> None:
    data = config.data
    if data.source != "latents":
        return
    if data.crop != "center":
        _fail("data.crop", "data.source", expected="center for cached latents", got=data.crop)
    if data.buckets:
        expected = "none with data.source=latents, which have one size"
        _fail("data.buckets", "data.source", expected=expected, got=list(data.buckets))


def _check_tasks(config: Config) -> None:
    tasks, weights = config.data.tasks, config.data.task_weights
    for task in tasks:
        if task not in TASKS:
            expected = f"{' or '.join(TASKS)}{hint(task, TASKS)}"
            _fail("data.tasks", expected=expected, got=task)
    if not tasks or len(set(tasks)) != len(tasks):
        expected = f"one or more of {', '.join(TASKS)}, each once"
        _fail("data.tasks", expected=expected, got=list(tasks))
    if len(weights) != len(tasks):
        _fail(
            "data.task_weights",
            "data.tasks",
            expected=f"{len(tasks)}, one for each of data.tasks={','.join(tasks)}",
            got=f"{len(weights)}: {list(weights)}",
        )
    if min(weights) <= 0 or abs(sum(weights) - 1) > 1e-6:
        expected = "shares above 0 that add up to 1"
        _fail("data.task_weights", expected=expected, got=list(weights))


def _check_task_signal(config: Config) -> None:
    signal, has_dense = config.model.task_signal, config.model.dense_groups > 0
    if not has_dense and signal != "none":
        _fail(
            "model.task_signal",
            "model.dense_groups",
            expected="none, since dense_groups=0 makes no dense map",
            got=signal,
        )
    if has_dense and signal == "none" and len(config.data.tasks) > 1:
        _fail(
            "model.task_signal",
            "data.tasks",
            expected=f"embedding or prompt, since there are {len(config.data.tasks)} tasks",
            got="none",
        )


def _check_sampling(config: Config) -> None:
    size = config.sample.guidance_size
    _check(config, "sample.guidance_size", expected="1 or 2", is_right=size in (1, 2))
    most = config.diffusion.num_train_timesteps
    for key in ("sample.num_steps", "validation.num_steps"):
        num_steps = attrgetter(key)(config)
        if num_steps > most:
            expected = f"at most diffusion.num_train_timesteps={most}"
            _fail(key, "diffusion.num_train_timesteps", expected=expected, got=num_steps)


def _check_validation(config: Config) -> None:
    validation, prompts = config.validation, config.validation.prompts
    if makes_sample_videos(config) and config.train.zero_stage == 3:
        # Each rank makes videos of its own; at stage 3 it holds only its share of the weights.
        expected = "none with train.zero_stage=3; sample from the checkpoints instead"
        _fail("validation.prompts", "train.zero_stage", expected=expected, got=list(prompts))
    if validation.every_steps and not (makes_sample_videos(config) or follows_fixed_noise(config)):
        expected = (
            "at least one prompt, or else validation.shards or validation.latents, since "
            "validation.every_steps is set"
        )
        _fail("validation.prompts", "validation.every_steps", expected=expected, got="none")
    if not all(prompt.strip() for prompt in prompts):
        _fail("validation.prompts", expected="prompts with text", got=list(prompts))
    if validation.shards and validation.latents:
        expected = "nothing, since validation.shards is set"
        _fail("validation.latents", "validation.shards", expected=expected, got=validation.latents)
    for key in ("validation.seeds", "validation.measures"):
        values = attrgetter(key)(config)
        if len(set(values)) != len(values):
            _fail(key, expected="each once", got=list(values))
    if any(not 0 <= seed <= _LARGEST_SEED for seed in validation.seeds):
        expected = f"0 to {_LARGEST_SEED}"
        _fail("validation.seeds", expected=expected, got=list(validation.seeds))
    if validation.measures and not prompts:
        expected = "at least one prompt, since validation.measures judge sample videos"
        _fail("validation.prompts", "validation.measures", expected=expected, got="none")
    if validation.evaluation is not None and not validation.measures:
        expected = "null without validation.measures"
        _fail(
            "validation.evaluation",
            "validation.measures",
            expected=expected,
            got=validation.evaluation,
        )


def _check_run(config: Config) -> None:
    every, keep = config.checkpoint.every_steps, config.checkpoint.keep_every
    if keep % every:
        expected = f"a multiple of checkpoint.every_steps={every}, or 0"
        _fail("checkpoint.keep_every", "checkpoint.every_steps", expected=expected, got=keep)
    known = (*setting_types(), GLOBAL_BATCH)
    for key in config.run.allow_changes:
        if key not in known:
            expected = f"settings, such as optimizer.lr{hint(key, known)}"
            _fail("run.allow_changes", expected=expected, got=key)


def _check(config: Config, key: str, *, expected: str, is_right: bool) -> None:
    if not is_right:
        value = attrgetter(key)(config)
        _fail(key, expected=expected, got=list(value) if isinstance(value, tuple) else value)


def _fail(key: str, *others: str, expected: str, got: object) -> NoReturn:
    shown = repr(got) if isinstance(got, str) and not got.strip() else got
    raise ConfigError(f"{key}: expected {expected}, got {shown}", keys=(key, *others))
