import json

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,
)
from safetensors.torch import load_file, save_file

from data_loaders.panda_dense import depthcrafter
from data_loaders.panda_dense.depthcrafter import (
    DepthCrafter,
    DepthCrafterParts,
    DepthCrafterSettings,
    check_depthcrafter,
    shrink_to_clip,
    windows,
    working_size,
)
from data_loaders.panda_dense.models import ModelFacts
from data_loaders.panda_dense.pixels import to_unit
from data_loaders.schema import DataError
from tests.data_loaders.panda_dense.depthcrafter_reference import (
    CASES,
    FOLDER,
    NUMBERS,
    SEED,
    make_clip,
    numbers_of,
    reference_disparity,
)
from tests.data_loaders.panda_dense.tiny_depth import (
    SMALL_DEPTHCRAFTER,
    make_tiny_depthcrafter,
    save_tiny_depthcrafter,
)

CPU = torch.device("cpu")
# Rounding alone makes up to 3e-5 of a range of 0..1; the least of slips tried, 8e-3.
TOLERANCE = 1e-4


def make(**numbers):
    return DepthCrafter(
        DepthCrafterParts(**make_tiny_depthcrafter()),
        settings=DepthCrafterSettings(**numbers),
        device=CPU,
        facts=ModelFacts(backend="model"),
    )


def our_disparity(case):
    # Theirs decodes eight frames at a time.
    model = make(
        steps=case.steps,
        guidance=case.guidance,
        window=case.window,
        overlap=case.overlap,
        decode_chunk=8,
    )
    video = to_unit(make_clip(case)) * 2 - 1
    return model.disparity(video, generator=torch.Generator().manual_seed(SEED)).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depthcrafter")
    save_tiny_depthcrafter(folder)
    return folder


def settings_for(folder, **numbers):
    return DepthCrafterSettings(
        unet=str(folder / "unet"), base=str(folder / "svd"), **(SMALL_DEPTHCRAFTER | numbers)
    )


@pytest.mark.parametrize("name", CASES)
def test_disparity_is_what_the_authors_program_said(name) -> None:
    stored = json.loads(NUMBERS.read_text())["cases"][name]
    ours = numbers_of(our_disparity(CASES[name]))
    assert ours["shape"] == stored["shape"]
    for number in ("mean", "std", "values"):
        np.testing.assert_allclose(ours[number], stored[number], rtol=0, atol=TOLERANCE)
    assert stored["std"] > 0.01


@pytest.mark.skipif(not FOLDER, reason="UDPDIFF_DEPTHCRAFTER names no checkout of DepthCrafter")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_disparity_is_what_the_authors_program_says(name) -> None:
    theirs = reference_disparity(CASES[name])
    np.testing.assert_allclose(our_disparity(CASES[name]), theirs, rtol=0, atol=TOLERANCE)


def test_parity_would_notice_one_embedding_for_all_frames(monkeypatch) -> None:
    # As Stable Video Diffusion itself does.
    right = our_disparity(CASES["one window"])
    predict = depthcrafter.predict_frames

    def with_first(*args, embeddings, **kwargs):
        return predict(*args, embeddings=embeddings[:, :1].expand_as(embeddings), **kwargs)

    monkeypatch.setattr(depthcrafter, "predict_frames", with_first)
    assert np.abs(our_disparity(CASES["one window"]) - right).max() > 50 * TOLERANCE


def test_parity_would_notice_other_motion_and_noise_numbers(monkeypatch) -> None:
    right = our_disparity(CASES["one window"])
    monkeypatch.setattr(depthcrafter, "_TIME_IDS", (6.0, 127.0, 0.02))
    assert np.abs(our_disparity(CASES["one window"]) - right).max() > 50 * TOLERANCE


def test_clip_sees_what_the_pipeline_of_diffusers_shows_it() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in ((64, 128), (224, 300), (512, 704), (1024, 576), (230, 1000)):
        frames = torch.rand(2, 3, *size, generator=generator) * 2 - 1
        theirs = _resize_with_antialiasing(frames, (224, 224))
        torch.testing.assert_close(shrink_to_clip(frames), theirs, rtol=0, atol=2e-6)


def test_sizes_are_multiples_of_64_as_the_authors_round() -> None:
    assert working_size(480, 720, max_side=1024) == (512, 704)
    assert working_size(576, 1024, max_side=1024) == (576, 1024)
    assert working_size(1080, 1920, max_side=1024) == (576, 1024)
    assert working_size(1920, 1080, max_side=1024) == (1024, 576)
    assert working_size(20, 30, max_side=1024) == (64, 64)


def test_windows_share_their_overlap_and_reach_the_end() -> None:
    assert windows(49, window=110, overlap=25) == [(0, 49)]
    assert windows(110, window=110, overlap=25) == [(0, 110)]
    assert windows(111, window=110, overlap=25) == [(0, 110), (85, 111)]
    assert windows(9, window=6, overlap=2) == [(0, 6), (4, 9)]
    assert windows(10, window=6, overlap=2) == [(0, 6), (4, 10)]
    assert windows(6, window=3, overlap=0) == [(0, 3), (3, 6)]


def test_windows_without_overlap_are_joined() -> None:
    model = make(steps=1, window=3, overlap=0)
    video = to_unit(make_clip(CASES["two windows"]))
    disparity = model.disparity(video, generator=torch.Generator().manual_seed(0))
    assert disparity.shape == (9, 64, 64)


def test_bright_is_near(monkeypatch) -> None:
    # A decoder that brightens from left to right and over time.
    model = make(max_side=64, steps=1)
    ramp = torch.linspace(0, 0.5, 64) + 0.1 * torch.arange(3)[:, None]
    monkeypatch.setattr(
        model, "_decode", lambda latents: ramp[:, None, :].expand(3, 64, 64).contiguous()
    )
    clip = model.estimate(np.zeros((3, 64, 64, 3), np.uint8), key="a")
    assert clip.depth[0, 0, 0] == 0
    assert clip.depth[2, -1, -1] == 65535
    assert (np.diff(clip.depth.astype(int), axis=2) > 0).all()
    assert (np.diff(clip.depth.astype(int), axis=0) > 0).all()
    assert clip.raw_min == 0
    assert clip.raw_max == pytest.approx(0.7)


def test_depth_follows_the_decoders_brightness() -> None:
    case = CASES["one window"]
    model = make(steps=case.steps)
    clip = model.estimate(make_clip(case), key="a")
    raw = model.disparity(
        to_unit(make_clip(case)) * 2 - 1, generator=depthcrafter.clip_generator(42, "a")
    ).numpy()
    assert clip.raw_min == raw.min()
    assert clip.raw_max == raw.max()
    back = clip.depth / 65535 * (clip.raw_max - clip.raw_min) + clip.raw_min
    np.testing.assert_allclose(back, raw, atol=1e-5)


def test_a_folder_as_the_hub_has_it_gives_depth_of_the_clips_own_size(folder) -> None:
    model = DepthCrafter.load(settings_for(folder), device=CPU)
    rgb = np.random.default_rng(0).integers(0, 256, (3, 40, 72, 3), dtype=np.uint8)
    clip = model.estimate(rgb, key="clip-1")
    assert clip.depth.shape == (3, 40, 72)
    assert (clip.depth.min(), clip.depth.max()) == (0, 65535)
    assert not clip.is_flat
    assert model.facts.backend == "model"
    assert model.facts.revision.count("+") == 2
    assert model.facts.version.startswith("diffusers ")
    assert "academic" in model.facts.license
    assert "Stability AI" in model.facts.license


def test_noise_belongs_to_the_seed_and_the_clip(folder) -> None:
    model = DepthCrafter.load(settings_for(folder), device=CPU)
    rgb = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    first = model.estimate(rgb, key="a").depth
    other = model.estimate(rgb, key="b").depth
    assert (model.estimate(rgb, key="a").depth == first).all()
    assert (other != first).any()
    model = DepthCrafter.load(settings_for(folder, seed=1), device=CPU)
    assert (model.estimate(rgb, key="a").depth != first).any()


def test_offload_changes_nothing(folder) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    depths = [
        DepthCrafter.load(settings_for(folder, offload=offload), device=CPU).estimate(rgb, key="a")
        for offload in (False, True)
    ]
    assert (depths[0].depth == depths[1].depth).all()


def test_shrinking_halves_what_is_decoded_at_once_until_one(monkeypatch) -> None:
    model = make(steps=1, decode_chunk=4)
    video = to_unit(make_clip(CASES["one window"]))
    sizes = []
    decode = model._decode
    monkeypatch.setattr(model, "_decode", lambda z: (sizes.append(len(z)), decode(z))[1])
    model.disparity(video, generator=torch.Generator().manual_seed(0))
    assert model.pieces.shrink()
    model.disparity(video, generator=torch.Generator().manual_seed(0))
    assert model.pieces.shrink()
    assert not model.pieces.shrink()
    model.pieces.restore()
    model.disparity(video, generator=torch.Generator().manual_seed(0))
    assert sizes == [4, 1, 2, 2, 1, 4, 1]


def test_the_copy_in_half_precision_is_read_where_it_is_the_only_one(folder, tmp_path) -> None:
    parts = make_tiny_depthcrafter()
    save_tiny_depthcrafter(tmp_path)
    for name, file in (("vae", "diffusion_pytorch_model"), ("image_encoder", "model")):
        plain = tmp_path / "svd" / name / f"{file}.safetensors"
        half = {key: value.half() for key, value in load_file(plain).items()}
        save_file(half, plain.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        plain.unlink()
    model = DepthCrafter.load(settings_for(tmp_path), device=CPU)
    weight = model.parts.vae.encoder.conv_in.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, parts["vae"].encoder.conv_in.weight.half().float())


def test_half_precision_encodes_in_full_and_decodes_in_half(folder) -> None:
    model = DepthCrafter.load(settings_for(folder, dtype="fp16"), device=CPU)
    seen = []
    model.parts.vae.encoder.register_forward_pre_hook(lambda m, x: seen.append(x[0].dtype))
    model.parts.vae.decoder.register_forward_pre_hook(lambda m, x: seen.append(x[0].dtype))
    rgb = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    clip = model.estimate(rgb, key="a")
    assert seen == [torch.float32, torch.float16]
    full = DepthCrafter.load(settings_for(folder), device=CPU).estimate(rgb, key="a")
    assert np.abs(clip.depth / 65535 - full.depth / 65535).mean() < 0.02


def test_weights_that_do_not_fit_are_named(folder, tmp_path) -> None:
    save_tiny_depthcrafter(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"depth\.depthcrafter\.unet: .*conv_in\.weight"):
        DepthCrafter.load(settings_for(tmp_path), device=CPU)


def test_weights_that_are_not_there_are_named(folder, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"d\.unet: no folder .*hf download tencent/DepthCrafter"):
        DepthCrafter.load(DepthCrafterSettings(unet=str(tmp_path / "no")), device=CPU, section="d")
    broken = DepthCrafterSettings(unet=str(folder / "unet"), base=str(tmp_path))
    with pytest.raises(ValueError, match=r"d\.base: no config\.json"):
        DepthCrafter.load(broken, device=CPU, section="d")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "depth.steps: expected at least 1, got 0"),
        ({"overlap": 110}, "depth.overlap: expected less than window = 110, got 110"),
        ({"guidance": 0.5}, "depth.guidance: expected at least 1, got 0.5"),
        ({"max_side": 63}, "depth.max_side: expected at least 64, got 63"),
    ],
)
def test_wrong_numbers_are_named(wrong, message) -> None:
    check_depthcrafter(DepthCrafterSettings(), section="depth")
    with pytest.raises(DataError, match=message):
        check_depthcrafter(DepthCrafterSettings(**wrong), section="depth")
