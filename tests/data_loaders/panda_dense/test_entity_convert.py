"""EntitySeg's checkpoints to transformers' files, against what EntitySeg's own modules gave."""

import hashlib
import json
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data_loaders.panda_dense.entity_convert import (
    convert_checkpoint,
    read_checkpoint,
    recognise,
)
from data_loaders.panda_dense.entity_keys import rename_weights
from data_loaders.panda_dense.mask2former import (
    EntitySegmenter,
    Mask2FormerSettings,
    load_network,
)
from data_loaders.panda_dense.mask2former_parts import predict_whole
from data_loaders.schema import DataError
from sat_udpdiff.encoders.source import WeightSource
from tests.data_loaders.panda_dense.published_entities import (
    SWIN_L,
    SWIN_T,
    TINY,
    Size,
    network_picture,
    picture,
    published_shapes,
    published_weights,
)

REFERENCE: dict[str, Any] = json.loads(
    Path(__file__).with_name("entity_reference.json").read_text()
)
KINDS = ("mask2former", "cropformer")
# Names and shapes of EntitySeg's own modules, one per line, sorted: how many, and SHA-256.
KEY_SETS = {
    ("mask2former", "T"): (482, "4db83c8376f1e0150bc40f557096af848619d0c230f406f353d48d87df4ee275"),
    ("mask2former", "L"): (650, "49abdbdf24c5814162351f3078fc3c7a16abb2b2e02643074c94302dbf09257e"),
    ("cropformer", "T"): (501, "7bb7d888c566c4ef228bed89ccee9acb8178a7b096075efd5d70cf9a0268a75d"),
    ("cropformer", "L"): (669, "3305c3a3c96e3d2da8acc38b4b1ba1713c2ee27fb7e13490b2f464acf85986c0"),
}
SIZES = {"T": SWIN_T, "L": SWIN_L}


def tiny_weights(kind: str) -> dict[str, Tensor]:
    return published_weights(published_shapes(TINY, is_cropformer=kind == "cropformer"))


def save(weights: dict[str, Any], path: Path) -> Path:
    torch.save({"model": weights, "iteration": 7}, path)
    return path


@pytest.fixture(scope="module", params=KINDS)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Kind, published weights, folder and what the converter said."""
    folder = tmp_path_factory.mktemp("converted")
    weights = tiny_weights(request.param)
    source = save(weights, folder / "model_final.pth")
    return request.param, weights, folder / "out", convert_checkpoint(source, folder / "out")


@pytest.mark.parametrize(("kind", "size"), KEY_SETS)
def test_the_made_up_checkpoint_has_the_published_names(kind: str, size: str) -> None:
    shapes = published_shapes(SIZES[size], is_cropformer=kind == "cropformer")
    lines = "\n".join(sorted(f"{name} {shape}" for name, shape in shapes.items()))
    count, digest = KEY_SETS[kind, size]
    assert len(shapes) == count
    assert hashlib.sha256(lines.encode()).hexdigest() == digest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "name"), [(SWIN_T, "Swin-T"), (SWIN_L, "Swin-L")])
def test_every_published_weight_has_a_place_and_every_place_a_weight(
    kind: str, size: Size, name: str
) -> None:
    from transformers import Mask2FormerForUniversalSegmentation

    shapes = published_shapes(size, is_cropformer=kind == "cropformer")
    published = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config, backbone = recognise(published)
    assert backbone == f"{name}, window 7"
    assert (config.num_queries, config.num_labels, config.num_attention_heads) == (100, 1, 8)
    assert (config.encoder_layers, config.decoder_layers) == (6, 10)
    renamed = rename_weights(published)
    placed = sum(tensor.numel() for tensor in [*renamed.network.values(), *renamed.fusion.values()])
    left = sum(published[key].numel() for key in renamed.left_out)
    assert placed + left == sum(tensor.numel() for tensor in published.values())
    with torch.device("meta"):
        network = Mask2FormerForUniversalSegmentation(config)
    # By shapes: transformers 5 calls its modules otherwise than its files. What one version keeps
    # and another does not, no result goes through.
    spare = ("swin.layernorm.weight", "swin.layernorm.bias", "relative_position_index")
    places = Counter(
        tuple(tensor.shape)
        for key, tensor in network.state_dict().items()
        if not key.endswith(spare)
    )
    assert Counter(tuple(tensor.shape) for tensor in renamed.network.values()) == places
    assert bool(renamed.fusion) == (kind == "cropformer")


def test_outputs_are_those_of_the_published_modules(converted: Any) -> None:
    kind, _, folder, _ = converted
    network = load_network(WeightSource(name=str(folder), subfolder="", is_local=True)).eval()
    is_cropformer = kind == "cropformer"
    pixels = network_picture(views=5 if is_cropformer else 1)
    with torch.inference_mode():
        found = network(pixels) if is_cropformer else predict_whole(network, pixels)
    expected = REFERENCE[kind]
    classes, masks = (torch.tensor(expected[name]) for name in ("class_logits", "mask_logits"))
    assert masks.std() > 1  # or 1e-4 would say little
    torch.testing.assert_close(found.class_logits, classes, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.mask_logits[:, ::4, ::11, ::13], masks, rtol=0, atol=1e-4)


def test_entities_are_those_of_the_published_inference(converted: Any) -> None:
    kind, _, folder, _ = converted
    settings = Mask2FormerSettings(
        weights=str(folder), min_score=0.0, min_area=0.0, short_side=96, long_side=160
    )
    segmenter = EntitySegmenter.load(settings, device=torch.device("cpu"))
    (found,) = segmenter.segment(picture(height=90, width=135)[None])
    expected = REFERENCE[kind]["inference"]
    assert found.scores == pytest.approx([entity["score"] for entity in expected], abs=1e-4)
    for number, entity in enumerate(expected, start=1):
        mask = found.ids == number
        # A pixel on an edge may fall to the other side on another machine.
        assert mask.sum() == pytest.approx(entity["area"], abs=1)
        centre = [float(indices.mean()) for indices in np.nonzero(mask)]
        assert centre == pytest.approx(entity["centre"], abs=0.6)


def test_every_number_arrives(converted: Any) -> None:
    kind, weights, folder, conversion = converted
    written = load_file(folder / "model.safetensors")
    if kind == "cropformer":
        written |= load_file(folder / "cropformer.safetensors")
    came = [tensor for name, tensor in weights.items() if name not in conversion.left_out]
    went = [tensor for name, tensor in written.items() if name not in conversion.filled]
    came, went = (torch.cat([tensor.flatten() for tensor in side]) for side in (came, went))
    assert torch.equal(came.sort().values, went.sort().values)


def test_it_says_what_it_did(converted: Any) -> None:
    kind, weights, folder, conversion = converted
    assert conversion.network == kind
    assert conversion.tensors == len(weights) - len(conversion.left_out)
    lines = conversion.lines()
    assert lines[0] == (
        f"{kind}, Swin 16 2-1-2-1, window 4, 20 queries: {conversion.tensors} tensors"
    )
    assert "left out 6: follows from the window's size" in lines
    assert lines[-1] == "licence of the weights: CC BY-NC 4.0"
    about = json.loads((folder / "entities.json").read_text())
    source = folder.with_name("model_final.pth").read_bytes()
    assert about["license"] == "CC BY-NC 4.0" and about["network"] == kind
    assert about["source_sha256"] == hashlib.sha256(source).hexdigest()


def test_arrays_halves_and_bare_dictionaries_are_read(tmp_path: Path) -> None:
    weights = tiny_weights("mask2former")
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    torch.save(arrays, tmp_path / "arrays.pth")
    name = "sem_seg_head.predictor.query_feat.weight"
    halves = save({name: weights[name].half()}, tmp_path / "halves.pth")
    read = read_checkpoint(tmp_path / "arrays.pth")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert read_checkpoint(halves)[name].dtype == torch.float32


def test_files_of_old_torch_and_what_trainers_leave_are_read(tmp_path: Path) -> None:
    content = {
        "model": {"a": torch.ones(2)},
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": np.float64(0.1)}]},
        "__author__": "third_party",
    }
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pth")["a"].tolist() == [1, 1]


class Unknown:
    """Something that a pickle may ask for."""


def _break(path: Path, how: str) -> None:
    weights: dict[str, Any] = tiny_weights("mask2former")
    query = "sem_seg_head.predictor.query_feat.weight"
    match how:
        case "code":
            torch.save({"model": weights, "hook": Unknown()}, path)
        case "cut":
            save(weights, path)
            path.write_bytes(path.read_bytes()[:5000])
        case "pickle":
            path.write_bytes(pickle.dumps({"model": {"a": np.ones(2)}}, protocol=2))
        case "empty":
            save({}, path)
        case "list":
            torch.save([1, 2], path)
        case "no tensor":
            save(weights | {query: "seven"}, path)
        case "unknown":
            save(weights | {"sem_seg_head.predictor.extra.weight": torch.ones(2)}, path)
        case "hornet":
            save({"backbone.stages.0.0.gnconv.pws.0.weight": torch.ones(2)}, path)
        case "resnet":
            save({"backbone.stem.conv1.weight": torch.ones(2)}, path)
        case "no queries":
            save({name: value for name, value in weights.items() if name != query}, path)
        case "incomplete":
            lost = "sem_seg_head.pixel_decoder.mask_features.bias"
            save({name: value for name, value in weights.items() if name != lost}, path)
        case "shape":
            save(weights | {"backbone.norm3.weight": torch.ones(5)}, path)
        case "rows":
            packed = (
                "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.in_proj_bias"
            )
            save(weights | {packed: torch.ones(7)}, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("code", r"model_final.pth: expected weights only, got a pickle that asks for \S*Unknown"),
        ("cut", "expected a file of torch.save, got one that is cut short or something else"),
        ("pickle", "expected a file of torch.save, got one that is cut short or something else"),
        ("empty", "model_final.pth: expected named weights, got dict"),
        ("list", "model_final.pth: expected named weights, got list"),
        ("no tensor", "query_feat.weight: expected a tensor, got str"),
        ("unknown", r"model_final.pth: sem_seg_head.predictor.extra.weight: expected a weight of"),
        ("hornet", "expected a Swin backbone, got HorNet"),
        ("resnet", "expected a Swin backbone, got none; the first weight is backbone.stem.conv1"),
        ("no queries", r"expected the weight \S*query_feat.weight, got none of that name"),
        ("incomplete", r"expected a complete network, got: 1 tensors do not fit .*mask_projection"),
        ("shape", "expected a complete network, got: "),
        ("rows", "in_proj_bias: expected rows for 3 equal parts, got 7"),
        ("missing", "cannot be read: No such file"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused_and_leaves_nothing(
    tmp_path: Path, how: str, message: str
) -> None:
    path = tmp_path / "model_final.pth"
    _break(path, how)
    with pytest.raises(DataError, match=message) as caught:
        convert_checkpoint(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {entry.name for entry in tmp_path.iterdir()} <= {"model_final.pth"}


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="expected a folder that is not there yet"):
        convert_checkpoint(tmp_path / "model_final.pth", tmp_path / "out")


def test_weights_of_the_made_up_checkpoint_differ() -> None:
    tensors = tiny_weights("cropformer").values()
    numbers = torch.cat([tensor.flatten() for tensor in tensors if tensor.is_floating_point()])
    # Draws of 24 bits: some coincide.
    assert len(numbers.unique()) > 0.98 * len(numbers)
    assert math.isfinite(float(numbers.sum()))
