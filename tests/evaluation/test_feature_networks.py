import math
import warnings

import numpy as np
import pytest
import torch

from sat_udpdiff.evaluation import feature_networks
from sat_udpdiff.evaluation.feature_networks import (
    clip_state,
    dino_positions,
    load_clip,
    load_dino,
    vit_state,
)
from sat_udpdiff.evaluation.feature_weights import find_feature_weights

WIDTH, LAYERS = 768, 12


def dino_shapes():
    shapes = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, 197, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 16, 16), "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
    }  # fmt: skip
    layers = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 4, "mlp.fc2": 1}
    for i in range(LAYERS):
        for name, factor in layers.items():
            inner = 4 * WIDTH if name == "mlp.fc2" else WIDTH
            shapes[f"blocks.{i}.{name}.weight"] = (factor * WIDTH, inner)
            shapes[f"blocks.{i}.{name}.bias"] = (factor * WIDTH,)
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{name}.weight"] = shapes[f"blocks.{i}.{name}.bias"] = (WIDTH,)
    return shapes


def random_state(shapes):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * (0.02 if len(shape) > 1 else 0.1)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("dino") / "dino_vitbase16_pretrain.pth"
    state = random_state(dino_shapes())
    state["pos_embed"] *= 25  # so that positions are seen in the features
    torch.save(state, path)
    yield path
    path.unlink()  # 343 MB


def dino(path):
    return load_dino(find_feature_weights(str(path), network="dino", key="evaluation.dino"))


def plain_vit(state, pixels):
    """DINO's ViT-B/16, written down from its formulas; square pictures of 224."""
    linear = lambda x, name: x @ state[f"{name}.weight"].T + state[f"{name}.bias"]  # noqa: E731

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return unit * state[f"{name}.weight"] + state[f"{name}.bias"]

    patches = torch.nn.functional.conv2d(
        pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16
    )
    x = torch.cat([state["cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).mT], dim=1)
    x = x + state["pos_embed"]
    for i in range(LAYERS):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, 12, 64)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT) / 8).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def test_the_published_file_gives_the_formulas(dino_file):
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = dino(dino_file)(pixels)
        expected = plain_vit(torch.load(dino_file, weights_only=True), pixels)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert expected.std(0).min() > 0  # the two pictures differ


def test_file_and_folder_are_one_network_with_the_positions_of_dino(dino_file, tmp_path):
    of_file = dino(dino_file)
    of_file.vit.save_pretrained(tmp_path)
    of_folder = dino(tmp_path)
    (tmp_path / "model.safetensors").unlink()  # 343 MB
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = of_file(pixels)
        np.testing.assert_array_equal(of_folder(pixels), features)
        # Those of transformers give something else.
        del of_folder.vit.embeddings.interpolate_pos_encoding
        assert (of_folder(pixels) - features).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(224, 336), (224, 231), (398, 224), (230, 224)])
def test_positions_are_sampled_at_a_scale_of_a_tenth_of_a_patch_more(size):
    table = torch.randn(1, 197, 2, generator=torch.Generator().manual_seed(0))
    found = dino_positions(table, height=size[0], width=size[1])
    rows, columns = size[0] // 16, size[1] // 16
    assert found.shape == (1, 1 + rows * columns, 2)
    assert torch.equal(found[:, 0], table[:, 0])
    # The same points of the grid of 14, by another function.
    y, x = ((torch.arange(n) + 0.5) * 14 / (n + 0.1) - 0.5 for n in (rows, columns))
    points = torch.stack(torch.meshgrid((2 * y + 1) / 14 - 1, (2 * x + 1) / 14 - 1, indexing="ij"))
    expected = torch.nn.functional.grid_sample(
        table[:, 1:].reshape(1, 14, 14, 2).permute(0, 3, 1, 2),
        points.flip(0).permute(1, 2, 0)[None],
        mode="bicubic", padding_mode="border", align_corners=False,
    )  # fmt: skip
    sampled = found[0, 1:].reshape(rows, columns, 2).permute(2, 0, 1)
    # At the border they clamp in different ways.
    np.testing.assert_allclose(sampled[:, 3:-3, 3:-3], expected[0, :, 3:-3, 3:-3], atol=1e-5)


def test_a_square_of_the_trained_size_takes_the_table_itself():
    table = torch.randn(1, 197, 8)
    assert dino_positions(table, height=224, width=224) is table
    # As many patches, not square: sampled anew, as in DINO's code.
    assert not torch.equal(dino_positions(table, height=224, width=231), table)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"norm.weight": torch.ones(WIDTH), "head.weight": torch.ones(2, 2)}, "197 tensors are mi"),
        ({"cls_token": torch.zeros(1, 1, 384)}, "is not DINO ViT-B/16"),
        ({"cls_token": torch.zeros(1, 1, WIDTH), "epoch": 3}, "expected a dictionary of tensors"),
    ],
    ids=["missing", "another size", "no tensors"],
)
def test_other_weights_are_refused_in_one_line(tmp_path, state, words):
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=words) as error:
        dino(tmp_path / "other.pth")
    assert str(error.value).startswith("evaluation.dino: ") and "\n" not in str(error.value)
    assert "https://dl.fbaipublicfiles.com" in str(error.value)


def test_what_is_no_weights_is_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"not a file of torch")
    with pytest.raises(ValueError, match=r"evaluation.dino: .*x.pth is not DINO ViT-B/16: "):
        dino(tmp_path / "x.pth")


def clip_openai_names(layers):
    names = ["class_embedding", "positional_embedding", "proj", "conv1.weight"]
    names += [f"{n}.{p}" for n in ("ln_pre", "ln_post") for p in ("weight", "bias")]
    for i in range(layers):
        stem = f"transformer.resblocks.{i}."
        names += [f"{stem}attn.in_proj_weight", f"{stem}attn.in_proj_bias"]
        for part in ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            names += [f"{stem}{part}.weight", f"{stem}{part}.bias"]
    return [f"visual.{name}" for name in names]


def test_names_of_clip_are_those_of_transformers():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device("meta"):
        expected = CLIPVisionModelWithProjection(CLIPVisionConfig()).state_dict()
    state = {name: torch.arange(6.0) for name in clip_openai_names(LAYERS)}
    state["visual.proj"] = torch.arange(6.0).reshape(2, 3)
    renamed = clip_state(
        {**state, "logit_scale": torch.zeros(()), "token_embedding.weight": torch.zeros(1)}
    )
    assert set(renamed) == set(expected)
    assert renamed["visual_projection.weight"].shape == (3, 2)
    stem = "vision_model.encoder.layers.0.self_attn."
    parts = [renamed[f"{stem}{part}_proj.weight"].tolist() for part in "qkv"]
    assert parts == [[0, 1], [2, 3], [4, 5]]


def test_names_of_dino_are_those_of_the_published_folder():
    renamed = vit_state({name: torch.zeros(3) for name in dino_shapes()})
    assert "encoder.layer.11.attention.attention.query.weight" in renamed
    assert len(renamed) == len(dino_shapes()) + 2 * 2 * LAYERS  # qkv in three, twice


class Program(torch.nn.Module):
    """Stands for OpenAI's archive: a program with tensors."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Linear(2, 3).half()

    def forward(self, x):
        # Not by the layer: deepspeed, once imported, puts an operation there that has no trace.
        return x @ self.visual.weight.T


def test_of_archives_with_code_only_that_of_openai_is_opened(tmp_path, monkeypatch):
    program = Program()
    path = tmp_path / "ViT-B-32.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(program, torch.zeros(1, 2).half()).save(str(path))
    weights = find_feature_weights(str(path), network="clip", key="evaluation.clip")
    with pytest.raises(ValueError, match="holds code, and this one is not OpenAI's"):
        load_clip(weights)
    monkeypatch.setattr(feature_networks, "OPENAI_SHA256", weights.sha256)
    state = feature_networks._read_state(weights)
    assert state["visual.weight"].dtype == torch.float32
    assert torch.equal(state["visual.weight"], program.visual.weight.float())
