"""CLIP's picture side and LAION's predictors with random weights, small enough for a CPU."""

from pathlib import Path

import torch
from torch import nn

SIZE = 16
PROJECTION = 12


def save_tiny_aesthetic(folder: Path) -> None:
    """`clip/` as the hub has it, `mlp.pth` and `linear.pth` as LAION publishes them."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
        projection_dim=PROJECTION,
        hidden_act="quick_gelu",
    )
    model = CLIPVisionModelWithProjection(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, tensor in sorted(model.named_parameters()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    model.save_pretrained(folder / "clip")
    widths = (PROJECTION, 10, 8, 6, 4, 1)
    # Dropout lies between: the numbers of the layers leave gaps.
    numbers = (0, 2, 4, 6, 7)
    state: dict[str, torch.Tensor] = {}
    for number, inputs, outputs in zip(numbers, widths, widths[1:], strict=False):
        state[f"layers.{number}.weight"] = torch.randn(outputs, inputs, generator=generator)
        state[f"layers.{number}.bias"] = torch.randn(outputs, generator=generator)
    torch.save(state, folder / "mlp.pth")
    torch.save(nn.Linear(PROJECTION, 1).state_dict(), folder / "linear.pth")
