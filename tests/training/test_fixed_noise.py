"""Losses under fixed noise: what they are, and what they do not depend on."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from data_loaders import latents
from data_loaders.loader import Batches
from data_loaders.schema import DataError
from data_loaders.shards import write_shards
from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.config import ConfigError
from sat_udpdiff.diffusion.schedule import make_schedule
from sat_udpdiff.distributed import Place
from sat_udpdiff.generation import Encoders
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.training.example import make_example
from sat_udpdiff.training.fixed_noise import FixedNoiseLosses
from sat_udpdiff.training.rng import Stream, normal

CLIPS = 3
SETTINGS = ("validation.every_steps=1", f"validation.clips={CLIPS}", "data.num_workers=0")
TIMES = [125, 375, 625, 875]
NO_DENSE = ("model.dense_groups=0", "model.task_signal=none")


def place_of(rank: int = 0, world_size: int = 1) -> Place:
    device = torch.device("cpu")
    return Place(rank=rank, world_size=world_size, local_rank=0, device=device, backend="gloo")


@pytest.fixture(scope="module")
def encoders(small_world, tmp_path_factory):
    return Encoders.load(small_world.config(tmp_path_factory.mktemp("run")), device="cpu")


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    world = WorldConfig(frames=9, height=32, width=48, world="simple")
    write_shards((make_clip(100 + i, seed=0, config=world) for i in range(4)), folder)
    return folder


@pytest.fixture(scope="module")
def make(small_world, held_out, encoders):
    """Losses of the held-out clips under settings."""

    def of(*overrides, place=None, encoders=encoders, source=f"validation.shards={held_out}"):
        config = small_world.config(held_out, *SETTINGS, source, *overrides)
        return FixedNoiseLosses(config, encoders=encoders, place=place or place_of())

    return of


@pytest.fixture(scope="module")
def network(small_world, held_out):
    return drawn(small_world.config(held_out))


def drawn(config):
    """A network none of whose layers is zero, as some are at the start of a run."""
    network = build_network(config.model, dtype=torch.float32, device=torch.device("cpu")).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture(scope="module")
def found(make, network):
    losses = make()
    return losses.means([losses(network)])


def by_hand(config, *, encoders, network, task: str) -> torch.Tensor:
    """(clips, quartiles, halves): v-prediction errors, one sample at a time."""
    data = replace(config.data, tasks=(task,), task_weights=(1.0,), num_workers=0)
    train = replace(config.train, micro_batch_size=1, caption_dropout=0.0)
    config = replace(config, data=replace(data, shards=config.validation.shards), train=train)
    signal = make_schedule(config.diffusion).signal
    rows = []
    with Batches(config) as batches, torch.no_grad():
        for clip, batch in enumerate(islice(batches, CLIPS)):
            example = make_example(
                batch, encoders=encoders, config=config, samples_seen=clip, global_batch=1
            )
            for quartile, time in enumerate(TIMES):
                t = torch.tensor([time])
                noise = normal(
                    [4 * clip + quartile],
                    seed=0,
                    stream=Stream.FIXED_NOISE,
                    shape=example.x0.shape[1:],
                )
                a = signal[time].float()
                sigma = (1 - signal[time] ** 2).sqrt().float()
                x_t = a * example.x0 + sigma * noise
                v = network(x_t, timesteps=t, text=example.text, task=example.task)
                error = (v - (a * noise - sigma * example.x0)) ** 2
                halves = error.chunk(2, dim=2)
                rows.append([error.mean(), halves[0].mean(), halves[1].mean()])
    return torch.tensor(rows).view(CLIPS, len(TIMES), 3)


def test_every_mean_is_that_of_the_loss_by_hand(
    found, small_world, held_out, encoders, network, tmp_path
):
    config = small_world.config(tmp_path, f"validation.shards={held_out}")
    tasks = ("segmentation", "depth")
    rows = torch.stack(
        [by_hand(config, encoders=encoders, network=network, task=task) for task in tasks]
    )  # (tasks, clips, quartiles, halves)
    expected = {"loss": rows[..., 0], "loss_video": rows[..., 1], "loss_dense": rows[..., 2]}
    for i, task in enumerate(tasks):
        expected[f"loss_{task}"] = rows[i, ..., 0]
        for half, name in enumerate(("video", "dense"), start=1):
            for q in range(4):
                expected[f"loss_{name}_{task}_t_quartile_{q + 1}"] = rows[i, :, q, half]
    for q in range(4):
        expected[f"loss_t_quartile_{q + 1}"] = rows[:, :, q, 0]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values.mean().item(), rel=1e-5), name
    # Quartiles, tasks and halves are told apart: no two cells have one value.
    assert len(set(found.values())) == len(found)


def test_the_numbers_repeat_and_do_not_depend_on_the_number_of_ranks(make, network, found):
    for world_size in (2, 4):  # with four, one of them has no clip
        shares = [make(place=place_of(rank, world_size))(network) for rank in range(world_size)]
        assert sum(map(len, shares)) == CLIPS
        assert make().means(shares) == found


def test_nothing_is_drawn_by_the_run(make, network, found):
    other = make(
        "seed=7", "train.caption_dropout=1.0", "data.crop=random", "data.task_weights=[0.9,0.1]"
    )
    assert other.means([other(network)]) == found


def test_batches_change_the_last_bits_alone(make, network, found):
    alone = make("train.micro_batch_size=1")
    means = alone.means([alone(network)])
    assert means == pytest.approx(found, rel=1e-5)


def test_no_random_state_and_no_gradient_is_touched(make, network):
    losses = make()
    before = torch.get_rng_state()
    losses(network)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_latents_need_no_encoders_and_give_the_same(
    make, network, found, small_world, held_out, tmp_path
):
    cache = tmp_path / "cache"
    command = ["--base", str(small_world.base), "--shards", str(held_out), "--output", str(cache)]
    assert latents.main([*command, "--recolourings", "1"]) == 0
    cached = make(source=f"validation.latents={cache}", encoders=None)
    # The encoders worked on other batches.
    assert cached.means([cached(network)]) == pytest.approx(found, rel=1e-4)


def test_encoders_are_loaded_for_clips_where_the_run_has_none(make, network, found):
    losses = make("data.source=latents", "data.latents=unused", encoders=None)
    assert losses.means([losses(network)]) == found


def test_a_network_without_a_dense_map_has_one_half_and_no_task(make, small_world, tmp_path):
    losses = make(*NO_DENSE)
    plain = drawn(small_world.config(tmp_path, *NO_DENSE))
    means = losses.means([losses(plain)])
    quartiles = [f"t_quartile_{q}" for q in (1, 2, 3, 4)]
    assert list(means) == [
        "loss",
        "loss_video",
        *(f"loss_{q}" for q in quartiles),
        *(f"loss_video_{q}" for q in quartiles),
    ]
    assert means["loss"] == means["loss_video"] > 0


def test_a_mean_that_is_not_finite_is_none(make, found):
    losses = make()
    rows = [[1.0, 2.0, 3.0] for _ in range(8)]
    rows[5][0] = float("nan")
    means = losses.means([{0: rows}, {1: rows, 2: rows}])
    bad = {"loss", "loss_depth", "loss_t_quartile_2"}
    assert {name for name, value in means.items() if value is None} == bad
    assert means["loss_segmentation"] == 1.0


def test_wrong_clips_are_told_at_once_by_the_setting(make, held_out, tmp_path):
    for source, encoders, expected in [
        ("validation.shards=nowhere", None, "validation.shards: .*manifest.json, found no such"),
        ("validation.latents=nowhere", None, "validation.latents: .*manifest.json, found no such"),
    ]:
        with pytest.raises(DataError, match=expected):
            make(source=source, encoders=encoders)
    with pytest.raises(ConfigError, match=r"validation.clips: expected at most 4, .*, got 5"):
        make("validation.clips=5")
    world = WorldConfig(frames=9, height=32, width=48, world="simple")
    clip = replace(make_clip(0, seed=0, config=world), depth=None)
    write_shards([clip], tmp_path / "no_depth")
    with pytest.raises(DataError, match=r"validation.shards: .*data.tasks: depth"):
        make("validation.clips=1", source=f"validation.shards={tmp_path / 'no_depth'}")


def test_stage_3_wants_as_many_clips_on_every_rank(make):
    with pytest.raises(ConfigError, match=r"validation.clips: expected a multiple of 2, .* got 3"):
        make("train.zero_stage=3", place=place_of(0, 2))
