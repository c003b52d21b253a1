"""A folder that diffusers opens: what of it needs no tensors, and the frozen networks.

    model_index.json  scheduler/  transformer/  vae/  text_encoder/  tokenizer/

A network with a dense map gets our classes; a 16-channel baseline gets diffusers' own, so that it
opens where this project is not installed. Nothing here imports diffusers, but for weights of the
frozen networks that are in no form to be copied.
"""

import json
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import Any

from sat_udpdiff.config import Config
from sat_udpdiff.diffusion.schedule import BETA_FIRST, BETA_LAST
from sat_udpdiff.pipeline.frozen import copy_frozen, tokenizer_class
from sat_udpdiff.pipeline.settings import PIPELINE_KEYS
from sat_udpdiff.weights.find import DIFFUSERS_STEM
from sat_udpdiff.weights.stored import State
from sat_udpdiff.weights.write import write_sharded

__all__ = [
    "copy_frozen",
    "model_index",
    "notes",
    "save_folder",
    "scheduler_config",
    "transformer_config",
    "write_configs",
]

_SCHEDULERS = {"dpmpp_2m_sde": "CogVideoXDPMScheduler", "ddim": "CogVideoXDDIMScheduler"}


def save_folder(folder: Path, *, config: Config, state: State | None = None) -> list[str]:
    """Write a whole folder.

    Args:
        folder: Where to; made if need be.
        config: Of the network; its codec and text encoder are copied from where they lie.
        state: Weights as `weights.key_map.to_diffusers` makes them, not checked here; None leaves
            `transformer/` as it is, for a caller that writes the tensors itself.

    Returns:
        What is missing or differs, a line each; [] = complete.

    Raises:
        ValueError: A frozen network is there but damaged; names the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_configs(folder, config=config)
    if state is not None:
        write_sharded(folder / "transformer", state, stem=DIFFUSERS_STEM)
    return [*notes(config), *copy_frozen(config, folder)]


def write_configs(folder: Path, *, config: Config) -> None:
    """Write what has no tensors: model_index.json, and the configs of network and schedule."""
    for name, values in (
        ("model_index.json", model_index(config)),
        ("scheduler/scheduler_config.json", scheduler_config(config)),
        ("transformer/config.json", transformer_config(config)),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def notes(config: Config) -> list[str]:
    """What diffusers will do otherwise than our sampler, a line each."""
    found, num_steps = [], config.sample.num_steps
    total = config.diffusion.num_train_timesteps
    if config.sample.schedule == "sat":
        found.append(
            "sample.schedule=sat: diffusers' schedulers know the training table only, so samples "
            "will differ from sample.py by about 0.1 % of the signal"
        )
    if total % num_steps:
        found.append(
            f"sample.num_steps={num_steps} does not divide {total}: there diffusers' schedulers "
            "step to other timesteps than they visit next, so samples will differ from sample.py"
        )
    if config.model.dense_groups == 0 and config.sample.guidance == "dynamic_step":
        found.append("sample.guidance=dynamic_step: diffusers' CogVideoXPipeline does not know it")
    return found


def model_index(config: Config) -> dict[str, Any]:
    """model_index.json: the pipeline's class, its settings, and the class of every component."""
    is_ours = config.model.dense_groups > 0
    # Ours are found in `udpdiff`, as sat_udpdiff.pipeline.udpdiff has told diffusers.
    library = "udpdiff" if is_ours else "diffusers"
    settings = {name: attrgetter(key)(config) for name, key in PIPELINE_KEYS.items()}
    return {
        **_head("UDPDiffPipeline" if is_ours else "CogVideoXPipeline"),
        **(settings if is_ours else {}),
        "scheduler": ["diffusers", scheduler_config(config)["_class_name"]],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", tokenizer_class(config)],
        "transformer": [library, transformer_config(config)["_class_name"]],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }


def scheduler_config(config: Config) -> dict[str, Any]:
    """scheduler/scheduler_config.json, for the schedule that the network was trained with."""
    return {
        **_head(_SCHEDULERS[config.sample.sampler]),
        "beta_start": BETA_FIRST,
        "beta_end": BETA_LAST,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "num_train_timesteps": config.diffusion.num_train_timesteps,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "set_alpha_to_one": True,
        "snr_shift_scale": config.diffusion.snr_shift,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
    }


def transformer_config(config: Config) -> dict[str, Any]:
    """transformer/config.json; the native size is that of `data`."""
    model, data, codec = config.model, config.data, config.codec
    is_ours = model.dense_groups > 0
    channels = model.latent_channels * (1 + model.dense_groups)
    ours = {"task_signal": model.task_signal, "tasks": list(data.tasks)}
    return {
        **_head("UDPDiffTransformer3DModel" if is_ours else "CogVideoXTransformer3DModel"),
        **(ours if is_ours else {}),
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": model.hidden_size // model.num_heads,
        "dropout": 0.0,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": channels,
        "max_text_seq_length": model.text_length,
        "norm_elementwise_affine": True,
        "norm_eps": 1e-5,
        "num_attention_heads": model.num_heads,
        "num_layers": model.num_layers,
        "ofs_embed_dim": None,
        "out_channels": channels,
        "patch_bias": True,
        "patch_size": model.patch_size,
        # None, not 1: diffusers keeps two kinds of patches apart by it (Conv2d and Linear).
        "patch_size_t": model.patch_size_t if model.patch_size_t > 1 else None,
        "sample_frames": data.num_frames,
        "sample_height": data.height // codec.spatial_compression,
        "sample_width": data.width // codec.spatial_compression,
        "spatial_interpolation_scale": model.spatial_interpolation,
        "temporal_compression_ratio": codec.temporal_compression,
        "temporal_interpolation_scale": 1.0,
        "text_embed_dim": model.text_dim,
        "time_embed_dim": model.time_embed_dim,
        "timestep_activation_fn": "silu",
        "use_learned_positional_embeddings": False,
        "use_rotary_positional_embeddings": model.positions == "rotary",
    }


def _head(class_name: str) -> dict[str, Any]:
    return {"_class_name": class_name, "_diffusers_version": metadata.version("diffusers")}
