"""The settings of a pipeline as our own configuration, so that both share checks and functions.

What belongs to a component is read from its config.json (sizes, tasks, compression); what diffusers
has no place for is an argument of the pipeline, kept in model_index.json under `PIPELINE_KEYS`.
"""

from collections.abc import Mapping
from typing import Any

from sat_udpdiff.config import Config
from sat_udpdiff.config_io import config_of

PIPELINE_KEYS = {
    "num_inference_steps": "sample.num_steps",
    "guidance": "sample.guidance",
    "guidance_scale": "sample.guidance_scale",
    "unconditional": "text.unconditional",
    "segmentation": "colormap.segmentation",
    "location_grid": "colormap.location_grid",
    "depth_inverse": "colormap.depth_inverse",
    "fps": "data.fps",
}
"""Arguments of the pipeline -> settings that they stand for."""


def settings_of(
    *,
    pipeline: Mapping[str, Any],
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    num_train_timesteps: int,
) -> Config:
    """The configuration that the configs of a pipeline and its components describe.

    Raises:
        ValueError: Values that are impossible, or that do not go together; names the key.
    """
    values = {key: pipeline[name] for name, key in PIPELINE_KEYS.items()}
    values |= _codec(vae) | _network(transformer, latent_channels=vae["latent_channels"])
    compression, tasks = values["codec.spatial_compression"], list(transformer["tasks"])
    values |= {
        "diffusion.num_train_timesteps": num_train_timesteps,
        "data.num_frames": transformer["sample_frames"],
        "data.height": transformer["sample_height"] * compression,
        "data.width": transformer["sample_width"] * compression,
        "data.tasks": tasks,
        "data.task_weights": [1 / max(1, len(tasks))] * len(tasks),
    }
    return config_of(values, source="the configs of the diffusers folder")


def _codec(vae: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "codec.scale_factor": vae["scaling_factor"],
        "codec.spatial_compression": 2 ** (len(vae["block_out_channels"]) - 1),
        "codec.temporal_compression": int(vae["temporal_compression_ratio"]),
    }


def _network(transformer: Mapping[str, Any], *, latent_channels: int) -> dict[str, Any]:
    channels, heads = transformer["in_channels"], transformer["num_attention_heads"]
    if channels % latent_channels:
        raise ValueError(
            f"in_channels: expected a multiple of the codec's {latent_channels}, got {channels}"
        )
    is_rotary = transformer["use_rotary_positional_embeddings"]
    return {
        "model.num_layers": transformer["num_layers"],
        "model.hidden_size": heads * transformer["attention_head_dim"],
        "model.num_heads": heads,
        "model.time_embed_dim": transformer["time_embed_dim"],
        "model.patch_size": transformer["patch_size"],
        "model.patch_size_t": transformer["patch_size_t"] or 1,
        "model.latent_channels": latent_channels,
        "model.dense_groups": channels // latent_channels - 1,
        "model.text_dim": transformer["text_embed_dim"],
        "model.text_length": transformer["max_text_seq_length"],
        "model.positions": "rotary" if is_rotary else "sincos",
        "model.spatial_interpolation": transformer["spatial_interpolation_scale"],
        "model.task_signal": transformer["task_signal"],
    }
