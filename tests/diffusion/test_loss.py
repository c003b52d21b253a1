"""The v-prediction loss and its halves."""

import pytest
import torch

from sat_udpdiff.config import DiffusionConfig
from sat_udpdiff.diffusion.loss import diffusion_loss
from sat_udpdiff.diffusion.schedule import make_schedule

SCHEDULE = make_schedule(DiffusionConfig())


def network(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(1.7 * x_t.roll(1, 2) + t.reshape(-1, 1, 1, 1, 1) / 500) - 0.3 * x_t


def inputs(*, channels: int = 32, dtype: torch.dtype = torch.float64) -> dict:
    generator = torch.Generator().manual_seed(3)
    t = torch.tensor([0, 1, 500, 998, 999])
    x0, noise = torch.randn(2, 5, 2, channels, 3, 4, generator=generator, dtype=torch.float64)
    return {"x0": x0.to(dtype), "noise": noise.to(dtype), "t": t, "schedule": SCHEDULE}


def loss(network=network, *, x0, **kwargs):
    return diffusion_loss(network, x0, **kwargs)


def test_equals_the_weighted_x0_loss():
    """SAT trains on (x0_hat - x0)^2 / (1 - a^2); the same number at every t, first and last too."""
    case = inputs()
    x0, noise, t = case["x0"], case["noise"], case["t"]
    x_t = SCHEDULE.add_noise(x0, noise=noise, t=t)
    x0_hat = SCHEDULE.x0_from_velocity(x_t, velocity=network(x_t, t), t=t)
    weight = 1 / (1 - SCHEDULE.signal[t].square())
    expected = weight * (x0_hat - x0).square().flatten(1).mean(1)
    assert torch.allclose(loss(**case).total, expected, rtol=1e-10)


def test_total_is_the_plain_mean_of_both_halves():
    terms = loss(**inputs())
    assert terms.total.shape == terms.video.shape == terms.dense.shape == (5,)
    assert torch.allclose(terms.total, (terms.video + terms.dense) / 2, rtol=1e-12)
    assert not torch.allclose(terms.video, terms.dense, rtol=1e-3)


def test_halves_are_the_first_and_the_other_channels():
    case = inputs(channels=48)  # two dense groups

    def wrong_in(channels: slice):
        velocity = SCHEDULE.velocity(case["x0"], noise=case["noise"], t=case["t"])
        velocity[:, :, channels] += 2
        return loss(lambda x_t, t: velocity, **case)

    terms = wrong_in(slice(0, 16))
    assert torch.allclose(terms.video, torch.full((5,), 4.0).double())
    assert torch.equal(terms.dense, torch.zeros(5).double())
    terms = wrong_in(slice(32, 48))
    assert torch.equal(terms.video, torch.zeros(5).double())
    assert torch.allclose(terms.dense, torch.full((5,), 2.0).double())
    assert torch.allclose(terms.total, torch.full((5,), 4.0 / 3).double())


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_dense_weight_is_relative_and_keeps_the_scale(weight: float):
    plain, terms = loss(**inputs()), loss(**inputs(), dense_weight=weight)
    assert torch.equal(plain.video, terms.video)
    assert torch.equal(plain.dense, terms.dense)
    expected = (plain.video + weight * plain.dense) / (1 + weight)
    assert torch.allclose(terms.total, expected, rtol=1e-12)


def test_without_dense_channels_the_video_is_the_total():
    terms = loss(**inputs(channels=16))
    assert torch.equal(terms.total, terms.video)
    assert torch.equal(terms.dense, torch.zeros(5).double())


def test_samples_do_not_mix():
    case = inputs()
    whole = loss(**case)
    for row in range(5):
        part = {k: v if k == "schedule" else v[row : row + 1] for k, v in case.items()}
        assert torch.equal(loss(**part).total, whole.total[row : row + 1])


def test_is_computed_in_float32_for_bfloat16_latents():
    exact = loss(**inputs())
    rounded = inputs(dtype=torch.bfloat16)
    seen = []

    def bf16_network(x_t, t):
        seen.append(x_t.dtype)
        return network(x_t, t).bfloat16()

    terms = loss(bf16_network, **rounded)
    assert seen == [torch.float32]
    assert terms.total.dtype == torch.float32
    assert torch.allclose(terms.total.double(), exact.total, rtol=2e-2)


def test_gradient_reaches_the_network_and_not_the_targets():
    case = inputs()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss(lambda x_t, t: scale * network(x_t, t), **case).total.mean().backward()
    step = 1e-6
    total = [
        loss(lambda x_t, t, s=s: s * network(x_t, t), **case).total.mean()
        for s in (1 + step, 1 - step)
    ]
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx((total[0] - total[1]).item() / (2 * step), rel=1e-6)


@pytest.mark.usefixtures("as_in_production")
def test_mistakes_that_would_broadcast_are_refused():
    case = inputs()
    with pytest.raises(ValueError, match="need noise of that shape"):
        loss(**{**case, "noise": case["noise"][:1]})
    with pytest.raises(ValueError, match="int64 timesteps"):
        loss(**{**case, "t": case["t"][:1]})
    with pytest.raises(ValueError, match="int64 timesteps"):
        loss(**{**case, "t": case["t"].double()})
    with pytest.raises(ValueError, match=r"network: expected \(5, 2, 32, 3, 4\) out"):
        loss(lambda x_t, t: x_t[:, :, :16], **case)
    with pytest.raises(ValueError, match=r"video_channels: expected 1 \.\. 32, got 33"):
        loss(**case, video_channels=33)
    with pytest.raises(ValueError, match=r"diffusion\.dense_loss_weight: expected >= 0, got -1"):
        loss(**case, dense_weight=-1.0)
