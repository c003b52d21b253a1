"""Time of sampling by stage: the stages of `generate` itself, counted on a clock that is given."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from sat_udpdiff.encoders.text import TextEncoder
from sat_udpdiff.encoders.tiles import PiecewiseDecode
from sat_udpdiff.encoders.vae import VideoCodec
from sat_udpdiff.evaluation import timing
from sat_udpdiff.evaluation.paper import table_rows
from sat_udpdiff.evaluation.timing import STAGES, SamplingTime, time_sampling, timing_table
from sat_udpdiff.generation import Encoders, SampleRequest, generate
from sat_udpdiff.model.transformer import build_network, initialise

REQUEST = SampleRequest(
    prompt="a red disc moves left", task="depth", seeds=(1,), num_frames=9, height=32, width=48
)
TIMES = SamplingTime(
    device="cpu",
    precision="fp32",
    num_steps=2,
    num_frames=9,
    height=32,
    width=48,
    stages={
        "text": (0.1, 0.3, 0.2),
        "denoise": (8.0, 9.0, 10.0),
        "vae_video": (1.0, 1.0, 1.5),
        "vae_dense": (1.0, 2.0, 1.0),
        "colormap": (0.5, 0.5, 0.75),
    },
    totals=(10.75, 13.0, 13.5),
)


@pytest.fixture(scope="module")
def world(small_world):
    """A small network, its encoders and its settings."""
    config = small_world.config(small_world.folder / "timing")
    network = build_network(config.model, dtype=torch.float32, device="cpu").eval()
    initialise(network, 0)
    text = TextEncoder.load(
        config.text, text_length=config.model.text_length, text_dim=config.model.text_dim
    )
    return network, Encoders(codec=VideoCodec.load(config.codec), text=text), config


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where the networks work: text 1 s, a step 10, decoding 100."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def slow(owner, name, seconds):
        fast = getattr(owner, name)

        def call(*args, **keywords):
            now[0] += seconds
            return fast(*args, **keywords)

        monkeypatch.setattr(owner, name, call)

    slow(TextEncoder, "encode", 1)
    slow(PiecewiseDecode, "decode", 100)
    return now


def test_each_stage_is_the_work_that_sampling_does(world, clock):
    network, encoders, config = world
    calls = []

    def stepping(*args, **keywords):
        clock[0] += 10
        calls.append(clock[0])
        return network(*args, **keywords)

    times = time_sampling(stepping, REQUEST, encoders=encoders, config=config, runs=4)
    steps = config.sample.num_steps
    assert dict(times.stages) == {
        "text": (1.0,) * 4,
        "denoise": (10.0 * steps,) * 4,
        "vae_video": (100.0,) * 4,
        "vae_dense": (100.0,) * 4,
        "colormap": (0.0,) * 4,
    }
    assert times.total == 201 + 10 * steps
    assert times.total_without_dense == 101 + 10 * steps
    assert len(calls) == 5 * steps  # four runs and the one before them
    assert (times.num_steps, times.num_frames, times.height, times.width) == (steps, 9, 32, 48)


def test_a_network_without_dense_maps_decodes_one_video(world, clock):
    _, encoders, config = world
    model = replace(config.model, dense_groups=0, task_signal="none")
    config = replace(config, model=model)
    network = lambda latents, **_: torch.zeros_like(latents)  # noqa: E731
    times = time_sampling(
        network, replace(REQUEST, task=None), encoders=encoders, config=config, runs=3
    )
    assert times.stages["vae_video"] == (100.0,) * 3
    assert times.stages["vae_dense"] == (0.0,) * 3
    assert times.total == times.total_without_dense == 101


def test_watching_changes_nothing(world):
    """And every stage is entered: text and denoising once per batch, what is decoded twice."""
    network, encoders, config = world
    seen = []

    class Watch:
        def __init__(self, stage):
            seen.append(stage)

        __enter__ = __exit__ = lambda *_: None

    request = replace(REQUEST, seeds=(1, 2, 3), batch_size=2)
    plain = generate(network, request, encoders=encoders, config=config)
    watched = generate(network, request, encoders=encoders, config=config, watch=Watch)
    for one, other in zip(plain, watched, strict=True):
        np.testing.assert_array_equal(one.rgb, other.rgb)
        np.testing.assert_array_equal(one.dense, other.dense)
    views = list(STAGES[2:4])
    expected = []
    for batch in (2, 1):
        # Latents to pixels, view by view, and then these to frames.
        expected += [*STAGES[:2], *views * batch, *views * batch, *STAGES[4:] * batch]
    assert seen == expected


def test_real_seconds_add_up(world):
    network, encoders, config = world
    times = time_sampling(network, REQUEST, encoders=encoders, config=config)
    for run, total in enumerate(times.totals):
        stages = [laps[run] for laps in times.stages.values()]
        assert min(stages) >= 0
        assert 0 < sum(stages) <= total
    assert 0 < times.total_without_dense < times.total


def test_what_cannot_be_timed_is_refused(world):
    network, encoders, config = world
    options = {"encoders": encoders, "config": config}
    with pytest.raises(ValueError, match="seeds: expected one, whose time is told, got 2"):
        time_sampling(network, replace(REQUEST, seeds=(1, 2)), **options)
    with pytest.raises(ValueError, match="runs: expected 3 or more, got 2"):
        time_sampling(network, REQUEST, runs=2, **options)
    with pytest.raises(ValueError, match="prompt: expected some text"):
        time_sampling(network, replace(REQUEST, prompt=""), **options)


def test_the_table_has_medians_and_the_papers_rows():
    lines = timing_table({"multi-task": TIMES}).splitlines()
    heads = [cell.strip() for cell in lines[0].strip("|").split("|")]
    ours = [cell.strip() for cell in lines[2].strip("|").split("|")]
    row = dict(zip(heads, ours, strict=True))
    assert (row["text"], row["denoise"], row["VAE, dense"]) == ("0.200", "9.000", "1.000")
    assert row["total"] == "13.00 (10.75 .. 13.50)"
    # 10.75 - 1.5, 13 - 2.5, 13.5 - 1.75: the median of differences, run by run.
    assert row["without dense decode"] == "10.50"
    assert row["where"] == "cpu, fp32, 2 steps, 9x32x48, 3 runs"
    assert re.findall(r"20\d\.\d\d", "\n".join(lines[3:])) == ["204.46", "205.75", "205.81"]
    names = re.findall(r"paper: ([^|]+) \|", "\n".join(lines[3:]))
    assert names == [row.name for row in table_rows(4)]
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_the_score_is_the_median_and_tells_the_stages():
    score = TIMES.score
    assert (score.name, score.value, score.higher_is_better) == ("seconds", 13.0, False)
    assert dict(score.facts) == {
        "device": "cpu", "precision": "fp32", "num_steps": 2, "size": "9x32x48", "runs": 3,
        "lowest": 10.75, "highest": 13.5, "without_dense": 10.5,
        "text": 0.2, "denoise": 9.0, "vae_video": 1.0, "vae_dense": 1.0, "colormap": 0.5,
    }  # fmt: skip


@pytest.mark.gpu
def test_a_gpu_is_waited_for():
    clock = timing._Clock(torch.device("cuda"))
    x = torch.randn(4096, 4096, device="cuda")
    x @ x
    for _ in range(2):
        with clock.stage("denoise"):
            for _ in range(50):
                x @ x
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(100):
        x @ x
    end.record()
    torch.cuda.synchronize()
    assert clock.seconds["denoise"] > 0.5 * start.elapsed_time(end) / 1000
