"""Depth networks of the real classes with random weights, small enough for a CPU."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

SMALL_DEPTHCRAFTER: dict[str, Any] = {"steps": 1, "max_side": 64}
"""Values of DepthCrafterSettings under which a clip of 49 frames takes 6 s on one CPU thread."""
SMALL_DEPTH_ANYTHING: dict[str, Any] = {"side": 70}
"""Likewise of DepthAnythingSettings: 3 s."""


def randomise(model: nn.Module, *, seed: int, scale: float = 1.0) -> None:
    """Every weight and bias anew, from numbers that are the same on every platform.

    Matrices get the variance that keeps a signal's size; vectors (biases, gains of norms) 0.1
    around the 0 or 1 that they start at, so that none is without effect.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in sorted(model.named_parameters()):
            # Uniform draws of doubles: torch's normal ones differ between vectorised kernels.
            draw = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
            if tensor.ndim < 2:
                start = tensor.double().mean().round() if tensor.numel() else 0
                tensor.copy_(start + 0.1 * draw)
            else:
                fan_in = tensor[0].numel()
                tensor.copy_(scale * draw * (3 / fan_in) ** 0.5)


def save_tiny_depthcrafter(folder: Path) -> None:
    """Folders unet/ and svd/ (vae/, image_encoder/, scheduler/) as the hub has them."""
    parts = make_tiny_depthcrafter()
    parts["unet"].save_pretrained(folder / "unet")
    for name in ("vae", "image_encoder", "scheduler"):
        parts[name].save_pretrained(folder / "svd" / name)
    # The published config names the class of the authors' program.
    config = folder / "unet" / "config.json"
    values = json.loads(config.read_text())
    values["_class_name"] = "DiffusersUNetSpatioTemporalConditionModelDepthCrafter"
    config.write_text(json.dumps(values))


def make_tiny_depthcrafter() -> dict[str, Any]:
    """The networks, in fp32."""
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
        AutoencoderKLTemporalDecoder,
    )
    from diffusers.models.unets.unet_spatio_temporal_condition import (
        UNetSpatioTemporalConditionModel,
    )
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=8,
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    )
    # Four levels, as the real one: eight pixels to a latent.
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
    )
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=224,
            intermediate_size=37,
            patch_size=32,
        )
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    randomise(unet, seed=1)
    randomise(vae, seed=2)
    randomise(image_encoder, seed=3)
    for network in (unet, vae, image_encoder):
        network.eval().requires_grad_(False)
    return {
        "unet": unet,
        "vae": vae,
        "image_encoder": image_encoder,
        "scheduler": scheduler,
    }


def save_tiny_depth_anything(folder: Path) -> None:
    """A folder as the hub has it; sides of pictures are multiples of 14."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    config = DepthAnythingConfig(
        backbone_config=Dinov2Config(
            hidden_size=24,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=70,
            patch_size=14,
            out_features=["stage1", "stage2", "stage3", "stage4"],
            apply_layernorm=True,
            reshape_hidden_states=False,
        ),
        reassemble_hidden_size=24,
        patch_size=14,
        neck_hidden_sizes=[12, 24, 36, 48],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    model = DepthAnythingForDepthEstimation(config)
    randomise(model, seed=4)
    with torch.no_grad():
        # The last ReLU would leave a random network black over half of its pictures.
        model.head.conv3.bias.fill_(2.0)
    model.save_pretrained(folder)
