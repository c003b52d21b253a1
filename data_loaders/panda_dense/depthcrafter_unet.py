"""DepthCrafter's way through the video U-Net of Stable Video Diffusion: one picture per frame.

Stable Video Diffusion shows every frame the CLIP embedding of one picture; DepthCrafter
(arXiv:2409.02095, section 3.2) shows each frame that of itself. The weights, blocks and names are
those of diffusers' `UNetSpatioTemporalConditionModel`; only the way through them is written here.
"""

from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor


def predict_frames(
    unet: Any,
    latents: Float[Tensor, "b t c h w"],
    *,
    timestep: Float[Tensor, ""],
    embeddings: Float[Tensor, "b t d"],
    added_time_ids: Float[Tensor, "b ids"],
) -> Float[Tensor, "b t c_out h w"]:
    """What the network predicts for every frame.

    Args:
        unet: diffusers' `UNetSpatioTemporalConditionModel`.
        latents: Scaled noisy latents and the latents of the video, along the channels; h and w
            divisible by 2 to the number of its upsamplers.
        timestep: The scheduler's, the same for all frames.
        embeddings: CLIP's, of each frame.
        added_time_ids: Frames per second, motion and noise, as Stable Video Diffusion names them.

    Returns:
        The prediction, in the network's dtype.
    """
    batch, frames = latents.shape[:2]
    dtype = unet.conv_in.weight.dtype
    emb = _time_embedding(unet, timestep=timestep, added_time_ids=added_time_ids, dtype=dtype)
    # Blocks take frames as a batch, and the flag that tells still pictures from videos.
    shared: dict[str, Tensor] = {
        "temb": repeat(emb, "b c -> (b t) c", t=frames),
        "image_only_indicator": torch.zeros(batch, frames, dtype=dtype, device=latents.device),
    }
    crossed = shared | {
        "encoder_hidden_states": rearrange(embeddings, "b t d -> (b t) 1 d").to(dtype)
    }
    x = unet.conv_in(rearrange(latents, "b t c h w -> (b t) c h w").to(dtype))
    skips = [x]
    for block in unet.down_blocks:
        x, more = block(hidden_states=x, **_inputs(block, crossed=crossed, shared=shared))
        skips += more
    x = unet.mid_block(hidden_states=x, **crossed)
    for block in unet.up_blocks:
        count = len(block.resnets)
        used, skips = tuple(skips[-count:]), skips[:-count]
        x = block(
            hidden_states=x,
            res_hidden_states_tuple=used,
            **_inputs(block, crossed=crossed, shared=shared),
        )
    x = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
    return rearrange(x, "(b t) c h w -> b t c h w", b=batch)


def _time_embedding(
    unet: Any,
    *,
    timestep: Float[Tensor, ""],
    added_time_ids: Float[Tensor, "b ids"],
    dtype: torch.dtype,
) -> Float[Tensor, "b c"]:
    batch = len(added_time_ids)
    time = unet.time_embedding(unet.time_proj(timestep.expand(batch)).to(dtype))
    added = unet.add_time_proj(added_time_ids.flatten()).reshape(batch, -1).to(dtype)
    return time + unet.add_embedding(added)


def _inputs(
    block: Any, *, crossed: dict[str, Tensor], shared: dict[str, Tensor]
) -> dict[str, Tensor]:
    return crossed if getattr(block, "has_cross_attention", False) else shared
