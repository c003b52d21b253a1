"""The little trainer of the shipped weights: optimizers, schedule, going on."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sat_udpdiff.tiny.small_run import FlatMuon, SmallRun, cosine_rate, muon_and_adam


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.SiLU(), nn.GroupNorm(2, 4))


def one_step(run: SmallRun) -> float:
    x = torch.randn(1, 2, 3, 5, 5, generator=torch.Generator().manual_seed(run.step))
    loss = (run.network(x) - x[:, :1]).square().mean()
    run.update(loss, rate=1e-2, gradient_clipping=1.0)
    return float(loss.detach())


def start(work: Path) -> SmallRun:
    return SmallRun(network(), weight_decay=0.01, ema_decay=0.9, work=work)


def test_a_restored_run_goes_on_as_the_unbroken_one(tmp_path: Path) -> None:
    unbroken = start(tmp_path)
    for _ in range(3):
        one_step(unbroken)
    unbroken.save()
    restored = start(tmp_path)
    assert restored.step == 3
    assert [one_step(unbroken) for _ in range(3)] == [one_step(restored) for _ in range(3)]
    for name, value in unbroken.mean.items():
        assert torch.equal(value, restored.mean[name]), name


def test_every_parameter_is_trained(tmp_path: Path) -> None:
    run = start(tmp_path)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    one_step(run)
    for name, value in run.network.state_dict().items():
        assert not torch.equal(value, before[name]), name


def test_muon_takes_matrices_and_adam_the_rest() -> None:
    muon, adam = muon_and_adam(network(), weight_decay=0.0)
    sizes = [[p.ndim for g in o.param_groups for p in g["params"]] for o in (muon, adam)]
    assert sizes == [[5], [1, 1, 1]]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (4, 2, 3, 3, 3)])
def test_muon_steps_as_torch_does(shape: tuple[int, ...]) -> None:
    """torch's iterations are in bfloat16: 8 bits of every value."""
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.empty(0))
    theirs.data = ours.detach().flatten(1).clone()
    muon = FlatMuon([ours], lr=0.1, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        before = ours.detach().clone()
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.flatten(1)
        muon.step()
        reference.step()
        step = (ours.detach() - before).norm()
        assert (ours.detach().flatten(1) - theirs.detach()).norm() < 0.05 * step


def test_cosine_rate() -> None:
    rates = [
        cosine_rate(step, steps=110, warmup_steps=10, peak=1.0, final=0.1) for step in range(111)
    ]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
