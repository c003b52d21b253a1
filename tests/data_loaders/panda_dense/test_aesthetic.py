import numpy as np
import pytest
import torch

from data_loaders.panda_dense.aesthetic import AestheticScorer, clip_input, load_head
from data_loaders.panda_dense.measuring import Measurer, MeasureSettings
from data_loaders.schema import DataError
from tests.data_loaders.panda_dense.tiny_aesthetic import SIZE, save_tiny_aesthetic

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save_tiny_aesthetic(folder)
    return folder


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (5, 30, 46, 3), dtype=np.uint8)


def scorer(weights, head="mlp.pth"):
    clip, head = str(weights / "clip"), str(weights / head)
    return AestheticScorer(clip=clip, head=head, dtype="fp32", device=CPU)


@pytest.mark.parametrize("size", [(480, 720), (360, 640), (300, 226), (100, 140)])
def test_the_input_is_that_of_transformers(size):
    processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    theirs = processing.CLIPImageProcessorPil()(list(frames), return_tensors="pt").pixel_values
    ours = clip_input(frames)
    assert ours.shape == (2, 3, 224, 224) and ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_score_is_the_head_of_the_unit_embedding(weights, frames):
    from transformers import CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(weights / "clip").eval()
    state = torch.load(weights / "mlp.pth", weights_only=True)
    with torch.inference_mode():
        values = model(pixel_values=clip_input(frames, side=SIZE)).image_embeds
        values = values / values.norm(dim=-1, keepdim=True)
        for number in (0, 2, 4, 6, 7):
            weight, bias = (state[f"layers.{number}.{part}"] for part in ("weight", "bias"))
            values = values @ weight.T + bias
    assert scorer(weights).score(frames) == pytest.approx(float(values.mean()), rel=1e-5)


def test_pieces_do_not_change_the_score(weights, frames):
    whole = scorer(weights)
    expected = whole.score(frames)
    assert [whole.pieces.shrink() for _ in range(4)] == [True, True, True, False]
    assert whole.score(frames) == pytest.approx(expected, rel=1e-5)


def test_the_linear_head(weights):
    head = load_head(str(weights / "linear.pth"))
    state = torch.load(weights / "linear.pth", weights_only=True)
    torch.testing.assert_close(head(torch.eye(12))[:, 0], state["weight"][0] + state["bias"])


def test_looks_are_measured_where_a_head_is_given(weights, frames):
    settings = MeasureSettings(
        aesthetic_clip=str(weights / "clip"),
        aesthetic_head=str(weights / "mlp.pth"),
        aesthetic_frames=2,
    )
    measurer = Measurer(settings, device=CPU)
    scores = measurer.measure(frames, fps=8.0)
    # The middle frames of two halves of five.
    assert scores.aesthetic == pytest.approx(scorer(weights).score(frames[[1, 3]]), rel=1e-5)
    assert measurer.facts.backend == "model" and len(measurer.facts.revision) == 12
    assert len(measurer.pieces) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layers.0.weight": torch.zeros(2, 2)}, "expected weight and bias, or layers.0"),
        ({"weight": torch.zeros(2, 12), "bias": torch.zeros(2)}, "expected one score, got 2"),
        ({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, "12 numbers, got one of 768"),
        ([1, 2], "got list"),
        (None, "cannot be read"),
    ],
)
def test_heads_that_cannot_be_used_are_named(weights, tmp_path, content, message):
    path = tmp_path / "head.pth"
    path.write_bytes(b"no head") if content is None else torch.save(content, path)
    with pytest.raises(DataError, match=message):
        scorer(weights, head=path)


def test_a_pickle_with_code_is_refused(weights, tmp_path):
    path = tmp_path / "head.pth"
    torch.save(torch.nn.Linear(12, 1), path)
    with pytest.raises(DataError, match="cannot be read"):
        scorer(weights, head=path)


def test_missing_clip_weights_are_named(weights, tmp_path):
    with pytest.raises(ValueError, match="aesthetic_clip: no folder"):
        AestheticScorer(
            clip="./nowhere at all", head=str(weights / "mlp.pth"), dtype="fp32", device=CPU
        )
