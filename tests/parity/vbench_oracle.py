"""Runs the vbench package on random weights: what our measures are compared with.

    python tests/parity/vbench_oracle.py weights PACKAGES FOLDER
    python tests/parity/vbench_oracle.py judge PACKAGES FOLDER

PACKAGES is what .ci/install_vbench made. A process of its own, because vbench wants a torchvision
that CPU torch cannot load, and a module that setuptools no longer has.

weights: writes FOLDER/{dino.pth,clip.pth,amt-s.pth}, random, with the names of those published.
judge: runs `VBench(...).evaluate(mode="custom_input")` on FOLDER/videos/*.mp4 with those weights.
Writes FOLDER/vbench/random_{eval_results,full_info}.json as VBench does, and FOLDER/features.npz:
per video its prepared pixels and features, and timm's own features of FOLDER/square.npy.
"""

import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import torch

# DINO's hub repository in small: what `torch.hub.load` finds where VBench keeps it.
HUBCONF = '''
import math
import timm
import torch
from torch.nn.functional import interpolate


def timm_dino():
    return timm.create_model("vit_base_patch16_224.dino", pretrained=False, num_classes=0).eval()


class DinoViT(torch.nn.Module):
    """timm's layers with the position embeddings of DINO's own code."""

    def __init__(self):
        super().__init__()
        self.timm = timm_dino()

    def positions(self, tokens, height, width):
        table = self.timm.pos_embed
        count = table.shape[1] - 1
        if tokens.shape[1] - 1 == count and width == height:
            return table
        side = math.sqrt(count)
        grid = table[:, 1:].reshape(1, int(side), int(side), -1).permute(0, 3, 1, 2)
        scale = ((height // 16 + 0.1) / side, (width // 16 + 0.1) / side)
        resized = interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat((table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)

    def forward(self, pixels):
        patches = self.timm.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        first = self.timm.cls_token.expand(len(pixels), -1, -1)
        tokens = torch.cat((first, patches), dim=1)
        tokens = tokens + self.positions(tokens, pixels.shape[-2], pixels.shape[-1])
        return self.timm.norm(self.timm.blocks(tokens))[:, 0]


def dino_vitb16(path=None, read_frame=False):
    model = DinoViT()
    model.timm.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return model.eval()
'''


def import_packages(folder: str) -> None:
    """Put the packages on the path, with what they miss."""
    import packaging.version

    sys.path.insert(0, folder)
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # Operators live as long as their library.
    import_packages.library = library
    resources = types.ModuleType("pkg_resources")
    resources.packaging = packaging
    sys.modules["pkg_resources"] = resources


def randomise(model: torch.nn.Module, *, seed: int, deviation: float) -> None:
    """Weights so large that features of different frames differ much."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=generator)
            is_norm = "norm" in name or ".ln_" in name
            if value.ndim > 1 and "embed" in name and "patch" not in name:
                value.copy_(noise * 0.5)
            elif value.ndim > 1:
                value.copy_(noise * deviation)
            else:
                value.copy_(noise * 0.1 + (1.0 if is_norm and name.endswith("weight") else 0.0))


def random_clip() -> torch.nn.Module:
    """CLIP with the picture side of ViT-B/32, and hardly a text side."""
    from clip.model import CLIP

    return CLIP(512, 224, 12, 768, 32, 8, 16, 64, 1, 1).float().eval()


def write_weights(folder: Path) -> None:
    """Random weights of all three networks."""
    names: dict = {}
    exec(HUBCONF, names)
    dino = names["timm_dino"]()
    randomise(dino, seed=1, deviation=0.04)
    torch.save(dino.state_dict(), folder / "dino.pth")
    clip = random_clip()
    randomise(clip, seed=2, deviation=0.04)
    torch.save(clip.state_dict(), folder / "clip.pth")
    import importlib

    torch.manual_seed(3)
    amt = importlib.import_module("vbench.third_party.amt.networks.AMT-S").Model()
    torch.save({"state_dict": amt.state_dict()}, folder / "amt-s.pth")


def judge(folder: Path) -> None:
    """VBench's scores and what goes before them."""
    cache = folder / "cache"
    hub = cache / "dino_model" / "facebookresearch_dino_main"
    hub.mkdir(parents=True)
    (cache / "amt_model").mkdir()
    (cache / "clip_model").mkdir()
    (hub / "hubconf.py").write_text(HUBCONF)
    os.link(folder / "dino.pth", cache / "dino_model" / "dino_vitbase16_pretrain.pth")
    os.link(folder / "amt-s.pth", cache / "amt_model" / "amt-s.pth")
    (cache / "clip_model" / "ViT-B-32.pt").touch()
    os.environ["VBENCH_CACHE_DIR"] = str(cache)

    import clip
    import vbench
    from vbench.utils import clip_transform, dino_transform, load_video

    clip_model = random_clip()
    clip_model.load_state_dict(torch.load(folder / "clip.pth", weights_only=True))
    # clip.load takes a TorchScript archive alone.
    clip.load = lambda path, device: (clip_model, None)
    with torch.no_grad():
        vbench.VBench("cpu", "", str(folder / "vbench")).evaluate(
            videos_path=str(folder / "videos"),
            name="random",
            dimension_list=["subject_consistency", "background_consistency", "motion_smoothness"],
            local=True,
            mode="custom_input",
        )
    dino = torch.hub.load(str(hub), "dino_vitb16", source="local", path=str(folder / "dino.pth"))
    found: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for path in sorted((folder / "videos").glob("*.mp4")):
            frames = load_video(str(path))
            found[f"{path.stem} frames"] = frames.permute(0, 2, 3, 1).numpy().astype(np.uint8)
            for name, transform, network in (
                ("dino", dino_transform(224), dino),
                ("clip", clip_transform(224), clip_model.encode_image),
            ):
                pixels = transform(frames)
                found[f"{path.stem} {name} pixels"] = pixels.numpy()
                found[f"{path.stem} {name}"] = network(pixels[:2]).numpy()
        square = torch.from_numpy(np.load(folder / "square.npy"))
        found["square"] = dino.timm(square).numpy()
    np.savez(folder / "features.npz", **found)
    shutil.rmtree(cache)


if __name__ == "__main__":
    command, packages, place = sys.argv[1:]
    import_packages(packages)
    {"weights": write_weights, "judge": judge}[command](Path(place))
