"""The settings of a pipeline as our own configuration, so that both share checks and functions.

What belongs to a component is read from its config.json (sizes, tasks, compression); what diffusers
has no place for is an argument of the pipeline, kept in model_index.json under `PIPELINE_KEYS`.
"""

from collections.abc import Mapping
from typing import Any, get_args

from sat_udpdiff.config import (
    ColormapConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    SampleConfig,
    TextEncoderConfig,
    VideoCodecConfig,
)
from sat_udpdiff.config_io import setting_types, validate
from sat_udpdiff.config_values import hint

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
"""Arguments of UDPDiffPipeline, kept in model_index.json -> settings that they stand for."""


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
    for name, key in PIPELINE_KEYS.items():
        options = get_args(setting_types()[key])
        if options and pipeline[name] not in options:
            raise ValueError(
                f"model_index.json: {name}: expected one of {', '.join(options)}"
                f"{hint(str(pipeline[name]), options)}, got {pipeline[name]!r}"
            )
    compression = 2 ** (len(vae["block_out_channels"]) - 1)
    temporal, tasks = int(vae["temporal_compression_ratio"]), tuple(transformer["tasks"])
    config = Config(
        model=_model(transformer, latent_channels=int(vae["latent_channels"])),
        codec=VideoCodecConfig(
            scale_factor=float(vae["scaling_factor"]),
            spatial_compression=compression,
            temporal_compression=temporal,
        ),
        text=TextEncoderConfig(unconditional=pipeline["unconditional"]),
        diffusion=DiffusionConfig(num_train_timesteps=num_train_timesteps),
        colormap=ColormapConfig(
            segmentation=pipeline["segmentation"],
            location_grid=pipeline["location_grid"],
            depth_inverse=pipeline["depth_inverse"],
        ),
        data=DataConfig(
            num_frames=transformer["sample_frames"],
            height=transformer["sample_height"] * compression,
            width=transformer["sample_width"] * compression,
            fps=pipeline["fps"],
            tasks=tasks,
            task_weights=(1 / len(tasks),) * len(tasks),
        ),
        sample=SampleConfig(
            num_steps=pipeline["num_inference_steps"],
            guidance=pipeline["guidance"],
            guidance_scale=pipeline["guidance_scale"],
        ),
    )
    validate(config)
    return config


def _model(transformer: Mapping[str, Any], *, latent_channels: int) -> ModelConfig:
    channels = transformer["in_channels"]
    if channels % latent_channels:
        raise ValueError(
            f"in_channels: expected a multiple of the codec's {latent_channels}, got {channels}"
        )
    heads = transformer["num_attention_heads"]
    return ModelConfig(
        num_layers=transformer["num_layers"],
        hidden_size=heads * transformer["attention_head_dim"],
        num_heads=heads,
        time_embed_dim=transformer["time_embed_dim"],
        patch_size=transformer["patch_size"],
        patch_size_t=transformer["patch_size_t"] or 1,
        latent_channels=latent_channels,
        dense_groups=channels // latent_channels - 1,
        text_dim=transformer["text_embed_dim"],
        text_length=transformer["max_text_seq_length"],
        positions="rotary" if transformer["use_rotary_positional_embeddings"] else "sincos",
        spatial_interpolation=transformer["spatial_interpolation_scale"],
        task_signal=transformer["task_signal"],
    )
