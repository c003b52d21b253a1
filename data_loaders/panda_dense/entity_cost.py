"""What first-frame entities cost, for plans made before there are weights."""

from typing import Any

import torch

from data_loaders.geometry import CropBox
from data_loaders.panda_dense.cropformer import CropFormer, CropFusion, view_boxes
from data_loaders.panda_dense.entity_input import input_size, network_input_size
from data_loaders.panda_dense.mask2former import Mask2FormerSettings
from data_loaders.panda_dense.mask2former_parts import predict_whole

GFLOPS_480X720 = {
    "mask2former Swin-T": 497,
    "mask2former Swin-L": 1715,
    "cropformer Swin-T": 2753,
    "cropformer Swin-L": 8845,
}
"""`flops_per_frame` / 1e9 of the published networks at 480x720 with the default settings, that is
at 800x1216 after padding; counted with transformers 5.23.0 and torch 2.13.0."""


def flops_per_frame(
    config: Any, *, height: int, width: int, settings: Mask2FormerSettings, is_cropformer: bool
) -> int:
    """Floating-point operations of the network for one frame, counted on torch's meta device.

    A multiply and an add count as two. Matrix products, convolutions and attention are counted;
    not the sampling of deformable attention, norms, resizing and what comes after the network.

    Args:
        config: `Mask2FormerConfig`, such as that of a converted folder.
        height: Of the frame, pixels.
        width: Of the frame, pixels.
        settings: Of these, the size that frames are resized to counts.
        is_cropformer: Five views instead of one, and the decoder on all of them.
    """
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Mask2FormerForUniversalSegmentation

    whole = CropBox(top=0, left=0, height=height, width=width)
    boxes = view_boxes(height=height, width=width) if is_cropformer else (whole,)
    sides = {"short_side": settings.short_side, "long_side": settings.long_side}
    sizes = [input_size(height=box.height, width=box.width, **sides) for box in boxes]
    with torch.device("meta"), torch.no_grad():
        # Some of its parameters are made without regard to the device that is set.
        network: Any = Mask2FormerForUniversalSegmentation(config)
        network = network.eval().to("meta")
        pixels = torch.empty((len(boxes), 3, *network_input_size(sizes)))
        with FlopCounterMode(display=False) as counter:
            if is_cropformer:
                CropFormer(network, fusion=_published_fusion(config)).eval()(pixels)
            else:
                predict_whole(network, pixels)
    return counter.get_total_flops()


def _published_fusion(config: Any) -> CropFusion:
    return CropFusion(
        num_layers=1,
        dim=config.hidden_dim,
        num_heads=config.num_attention_heads,
        hidden=config.dim_feedforward,
    )
