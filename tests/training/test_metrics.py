"""Numbers of a run: means over samples, steps and ranks."""

import json

import torch

from sat_udpdiff.diffusion.loss import LossTerms
from sat_udpdiff.distributed import Place
from sat_udpdiff.training.metrics import Meter, measure, split_meters

ONE = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="gloo")


def measured(total: list[float], *, t: list[int], task: list[int]) -> torch.Tensor:
    values = torch.tensor(total)
    terms = LossTerms(total=values, video=values - 1, dense=values + 1)
    return measure(terms, t=torch.tensor(t), task=torch.tensor(task), num_timesteps=1000)


def test_means_are_over_samples_of_all_steps_by_task_and_timestep():
    meter = Meter(torch.device("cpu"))
    meter.add(measured([2.0, 4.0], t=[0, 999], task=[0, 1]), grad_norm=torch.tensor(1.0))
    meter.add(measured([6.0, 8.0], t=[249, 250], task=[1, 1]), grad_norm=torch.tensor(3.0))
    means = meter.means()
    assert means["loss"] == 5.0
    assert (means["loss_video"], means["loss_dense"]) == (4.0, 6.0)
    assert (means["loss_segmentation"], means["loss_depth"]) == (2.0, 6.0)
    assert [means[f"loss_t_quartile_{q}"] for q in (1, 2, 3, 4)] == [4.0, 8.0, None, 4.0]
    assert means["grad_norm"] == 2.0
    assert meter.means()["loss"] is None


def test_a_meter_goes_on_from_a_checkpoint_bit_for_bit():
    steps = [measured([x, x / 3], t=[1, 2], task=[0, 1]) for x in (0.1, 0.7, 1.3)]
    unbroken, before = Meter(torch.device("cpu")), Meter(torch.device("cpu"))
    for step in steps:
        unbroken.add(step, grad_norm=torch.tensor(0.3))
    before.add(steps[0], grad_norm=torch.tensor(0.3))
    rows = json.loads(json.dumps([before.row()]))
    after = Meter(torch.device("cpu"), row=split_meters(rows, place=ONE))
    for step in steps[1:]:
        after.add(step, grad_norm=torch.tensor(0.3))
    assert after.means() == unbroken.means()


def test_meters_of_other_ranks_are_not_lost_when_the_number_of_ranks_changes():
    assert split_meters([[1.0, 2.0], [10.0, 20.0]], place=ONE) == [11.0, 22.0]
    assert split_meters([], place=ONE) == ()


def test_a_run_without_a_dense_map_logs_nothing_for_one():
    terms = LossTerms(total=torch.ones(2), video=torch.ones(2), dense=torch.zeros(2))
    meter = Meter(torch.device("cpu"))
    row = measure(terms, t=torch.tensor([0, 900]), task=None, num_timesteps=1000)
    meter.add(row, grad_norm=torch.tensor(1.0))
    means = meter.means()
    assert (means["loss"], means["loss_video"]) == (1.0, 1.0)
    assert {means["loss_dense"], means["loss_segmentation"], means["loss_depth"]} == {None}
