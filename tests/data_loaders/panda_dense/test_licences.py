from dataclasses import replace

import pytest

from data_loaders.panda_dense.depth_anything import DepthAnythingSettings
from data_loaders.panda_dense.licences import (
    LICENCES,
    UNKNOWN,
    find_licence,
    licence_notice,
    license_of,
)
from data_loaders.panda_dense.models import ModelFacts


@pytest.mark.parametrize(
    ("weights", "part"),
    [
        ("tencent/DepthCrafter", "academic"),
        ("stabilityai/stable-video-diffusion-img2vid-xt", "Stability AI community"),
        ("depth-anything/Depth-Anything-V2-Small-hf", "Apache-2.0"),
        ("depth-anything/Depth-Anything-V2-Base-hf", "CC BY-NC 4.0"),
        ("depth-anything/Depth-Anything-V2-Large-hf", "CC BY-NC 4.0"),
        ("LanguageBind/Video-LLaVA-7B-hf", "non-commercial"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "research"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Apache-2.0"),
        ("Qwen/Qwen2.5-VL-72B-Instruct", "Qwen licence"),
        ("Qwen/Qwen3-VL-8B-Instruct", "Apache-2.0"),
        ("facebook/sam2.1-hiera-large", "Apache-2.0"),
        ("qqlu1992/Adobe_EntitySeg", "CC BY-NC 4.0"),
        ("openai/clip-vit-large-patch14", "MIT"),
        ("/models/Depth-Anything-V2-Small-hf/", "Apache-2.0"),
        ("weights/Video-LLaVA-7B-hf", "non-commercial"),
    ],
)
def test_terms_are_found_by_hub_id_or_folder_name(weights, part) -> None:
    licence = find_licence(weights)
    assert licence is not None
    assert part in licence.terms


def test_weights_of_unknown_origin_are_not_called_free() -> None:
    assert find_licence("/data/my-weights") is None
    terms = license_of("/data/my-weights", otherwise="depth-anything/Depth-Anything-V2-Large-hf")
    assert terms.startswith(UNKNOWN)
    assert "CC BY-NC 4.0" in terms


def test_the_notice_is_one_line_with_name_terms_and_source() -> None:
    weights = DepthAnythingSettings().weights
    facts = ModelFacts(backend="model", model=weights, license=license_of(weights, otherwise=""))
    notice = licence_notice(facts)
    assert notice.startswith(f"{weights}: Apache-2.0 (README.md of ")
    assert "\n" not in notice
    assert licence_notice(replace(facts, model="/x/y", license="")) == f"/x/y: {UNKNOWN}"


def test_a_model_of_two_parts_names_the_sources_of_both() -> None:
    model = "tencent/DepthCrafter on stabilityai/stable-video-diffusion-img2vid-xt"
    notice = licence_notice(ModelFacts(backend="model", model=model, license="terms"))
    assert notice.startswith(f"{model}: terms (LICENSE of github.com/Tencent/DepthCrafter at ")
    assert "model card" in notice


def test_every_entry_says_where_it_stands() -> None:
    for licence in LICENCES:
        assert licence.family == licence.family.lower()
        assert licence.terms
        assert licence.source
