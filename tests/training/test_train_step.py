"""One optimizer step inside deepspeed: accumulation, clipping, losses that are not finite."""

import dataclasses
import json
import os
import threading
from pathlib import Path

import pytest
import torch

from data_loaders.loader import Batches
from sat_udpdiff.config import ParallelConfig
from sat_udpdiff.diffusion.loss import LossTerms
from sat_udpdiff.diffusion.schedule import make_schedule
from sat_udpdiff.distributed import init_distributed
from sat_udpdiff.generation import Encoders
from sat_udpdiff.training import checkpoint, loop, ranks
from sat_udpdiff.training.checkpoint import Saver
from sat_udpdiff.training.engine import MASTERS, MOMENTS, to_deepspeed
from sat_udpdiff.training.loop import Outcome, Trainer, TrainingError, train_step
from sat_udpdiff.training.metrics import Meter
from sat_udpdiff.training.setup import build_engine, find_resume_point, restore_or_start
from sat_udpdiff.training.watch import SpikeWatch

# deepspeed warns about its own use of torch.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def place():
    return init_distributed(device="cpu")


@pytest.fixture(scope="module")
def encoders(small_world, tmp_path_factory):
    return Encoders.load(small_world.config(tmp_path_factory.mktemp("run")), device="cpu")


@pytest.fixture
def make_trainer(small_world, place, encoders, tmp_path):
    def make(*overrides: str) -> Trainer:
        config = small_world.config(tmp_path, "data.num_workers=0", *overrides)
        engine = build_engine(config, place=place, resume_point=None)
        state, ema = restore_or_start(engine, config=config, resume_point=None)
        return Trainer(
            config=config,
            place=place,
            engine=engine,
            encoders=encoders,
            schedule=make_schedule(config.diffusion),
            state=state,
            ema=ema,
        )

    return make


def data(trainer: Trainer):
    return Batches(trainer.config, start=trainer.state.samples_seen)


def tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{name}": value
        for kind in (MASTERS, *MOMENTS)
        for name, value in trainer.engine.gather(kind, keep=True).items()
    }


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not first[key].equal(second[key])] == []


def test_two_micro_batches_of_one_equal_one_of_two(make_trainer):
    together, apart = (
        make_trainer(),
        make_trainer("train.micro_batch_size=1", "train.accumulation_steps=2"),
    )
    for _ in range(2):
        one, two = train_step(together, data(together)), train_step(apart, data(apart))
        torch.testing.assert_close(one.measured, two.measured, rtol=2e-6, atol=2e-6)
        # One clip of the whole gradient: clipping each half would give another norm.
        torch.testing.assert_close(
            together.engine.grad_norm(), apart.engine.grad_norm(), rtol=1e-5, atol=0
        )
    assert (apart.state.step, apart.state.samples_seen) == (2, 4)
    others = tensors(apart)
    for key, value in tensors(together).items():
        # Adam turns a gradient near 0 into a step of lr = 1e-3: 9e-6 was measured there.
        torch.testing.assert_close(others[key], value, rtol=1e-3, atol=3e-5)


def test_the_gradient_is_clipped_to_the_configured_norm(make_trainer):
    trainer = make_trainer("optimizer.gradient_clipping=1e-3", "optimizer.betas=[0.0,0.0]")
    train_step(trainer, data(trainer))
    assert trainer.engine.grad_norm() > 0.1
    # With beta1 = 0 the first moment is the clipped gradient itself.
    moment = trainer.engine.gather("exp_avg", keep=True).values()
    norm = torch.cat([value.flatten() for value in moment]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_norms_biases_and_the_task_table_do_not_decay(make_trainer):
    trainer = make_trainer("optimizer.weight_decay=0.5", "optimizer.lr=1.0")
    groups = trainer.engine._engine.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(
    ("stage", "precision"), [(2, "fp32"), (2, "bf16"), (1, "bf16"), (3, "fp32"), (3, "bf16")]
)
def test_a_restored_engine_goes_on_bit_for_bit(stage, precision, rank, make_trainer):
    overrides = (f"train.zero_stage={stage}", f"train.precision={precision}", f"lora.rank={rank}")
    trainer = make_trainer(*overrides)
    for _ in range(2):
        train_step(trainer, data(trainer))
        trainer.ema.update(trainer.engine.masters())
    saver = Saver(trainer.config, place=trainer.place)
    loop._save(trainer, Meter(trainer.place.device), saver=saver)
    saver.finish()
    saver.close()
    resume_point = find_resume_point(trainer.config, place=trainer.place)
    engine = build_engine(trainer.config, place=trainer.place, resume_point=resume_point)
    state, ema = restore_or_start(engine, config=trainer.config, resume_point=resume_point)
    other = dataclasses.replace(trainer, engine=engine, state=state, ema=ema)
    for one in (trainer, other):
        report = train_step(one, data(one))
        one.ema.update(one.engine.masters())
        assert report.outcome is Outcome.MOVED
    assert_equal(tensors(trainer), tensors(other))
    assert trainer.engine.grad_norm().equal(other.engine.grad_norm())
    for shadow, expected in zip(other.ema.shadow, trainer.ema.shadow, strict=True):
        assert shadow.equal(expected)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_save_in_flight_is_not_moved_by_the_next_step(stage, make_trainer, monkeypatch):
    trainer = make_trainer(f"train.zero_stage={stage}")
    train_step(trainer, data(trainer))
    expected, average = tensors(trainer), [shadow.clone() for shadow in trainer.ema.shadow]
    may_write, write = threading.Event(), checkpoint.write_tensors

    def wait(path, held, *, facts):
        assert may_write.wait(60)
        return write(path, held, facts=facts)

    monkeypatch.setattr(checkpoint, "write_tensors", wait)
    saver = Saver(trainer.config, place=trainer.place)
    saver.save(trainer.engine, ema=trainer.ema, state=trainer.state)
    train_step(trainer, data(trainer))
    trainer.ema.update(trainer.engine.masters())
    may_write.set()
    saver.finish()
    saver.close()
    assert not all(value.equal(expected[key]) for key, value in tensors(trainer).items())
    resume_point = find_resume_point(trainer.config, place=trainer.place)
    engine = build_engine(trainer.config, place=trainer.place, resume_point=resume_point)
    state, ema = restore_or_start(engine, config=trainer.config, resume_point=resume_point)
    assert state.step == 1
    assert_equal(tensors(dataclasses.replace(trainer, engine=engine)), expected)
    assert all(map(torch.equal, ema.shadow, average))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_lora_moves_and_keeps_what_it_trains_and_nothing_else(stage, make_trainer):
    trainer = make_trainer("lora.rank=4", f"train.zero_stage={stage}", "optimizer.warmup_steps=0")
    names = {n for n, p in trainer.engine.module.named_parameters() if p.requires_grad}
    before = dict(frozen(trainer))
    start = trainer.engine.gather(MASTERS, keep=True)
    for _ in range(2):
        train_step(trainer, data(trainer))
    for kind in (MASTERS, *MOMENTS):
        assert trainer.engine.gather(kind, keep=True).keys() == names
    assert trainer.engine.num_parameters == sum(value.numel() for value in start.values())
    moved = trainer.engine.gather(MASTERS, keep=True)
    assert [name for name in names if moved[name].equal(start[name])] == []
    assert_equal(before, dict(frozen(trainer)))
    assert len(before) > 30
    shadow = sum(tensor.numel() for tensor in trainer.ema.shadow)
    # ZeRO rounds its share up to whole pieces.
    assert shadow <= trainer.engine.num_parameters + 64


def test_the_first_loss_of_lora_is_that_of_the_base(make_trainer):
    whole, adapted = make_trainer(), make_trainer("lora.rank=4", "lora.alpha=32")
    reports = [train_step(trainer, data(trainer)) for trainer in (whole, adapted)]
    assert reports[0].measured.equal(reports[1].measured)
    assert adapted.engine.grad_norm() < whole.engine.grad_norm()


def frozen(trainer: Trainer):
    """Names and values that no step may change; at stage 3 deepspeed hands them out when asked."""
    import deepspeed

    for name, parameter in trainer.engine.module.named_parameters():
        if not parameter.requires_grad:
            with deepspeed.zero.GatheredParameters(parameter):
                yield name, parameter.detach().clone()


def spoil(monkeypatch, number: int, how):
    """Make the `number`-th forward pass from now go wrong."""
    real, count = loop._forward, iter(range(1, 1000))

    def forward(trainer, example):
        terms = real(trainer, example)
        return how(trainer, terms) if next(count) == number else terms

    monkeypatch.setattr(loop, "_forward", forward)


def infinite_loss(trainer: Trainer, terms: LossTerms) -> LossTerms:
    factor = torch.ones_like(terms.total)
    factor[0] = float("inf")
    return dataclasses.replace(terms, total=terms.total * factor)


def infinite_gradient(trainer: Trainer, terms: LossTerms) -> LossTerms:
    parameter = next(trainer.engine.module.parameters()).flatten()[0]
    zero_with_infinite_slope = (parameter - parameter.detach()).sqrt()
    return dataclasses.replace(terms, total=terms.total + zero_with_infinite_slope)


@pytest.mark.parametrize("how", [infinite_loss, infinite_gradient])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_is_not_finite_leaves_no_trace(how, accumulation, make_trainer, monkeypatch):
    overrides = ("optimizer.warmup_steps=0", f"train.accumulation_steps={accumulation}")
    trainer = make_trainer(*overrides)
    train_step(trainer, data(trainer))
    before = tensors(trainer)
    spoil(monkeypatch, accumulation, how)
    report = train_step(trainer, data(trainer))
    assert report.outcome is Outcome.BAD
    assert len(report.bad_keys) == (1 if how is infinite_loss else 0)
    assert_equal(tensors(trainer), before)
    monkeypatch.undo()
    # The next step is the one of a run that never saw the bad one.
    train_step(trainer, data(trainer))
    clean = make_trainer(*overrides)
    train_step(clean, data(clean))
    clean.state.step, clean.state.samples_seen = 2, 2 * trainer.global_batch
    train_step(clean, data(clean))
    assert_equal(tensors(trainer), tensors(clean))


def test_ranks_that_share_samples_and_read_different_ones_are_named(make_trainer, monkeypatch):
    trainer = make_trainer("train.micro_batch_size=1")
    before = tensors(trainer)
    trainer.place = dataclasses.replace(trainer.place, world_size=2)
    trainer.config = dataclasses.replace(trainer.config, parallel=ParallelConfig(sequence_size=2))
    monkeypatch.setattr(ranks, "sums", lambda words, *, place: words)  # of one of two peers
    other = (0, "rank 1 on n2", ["another"])
    monkeypatch.setattr(ranks, "gather", lambda own, *, place: [own, other])
    expected = r"step 1: rank 1 on n2 read another, and rank 0 on .*, whose samples it shares, "
    with pytest.raises(TrainingError, match=expected):
        train_step(trainer, data(make_trainer("train.micro_batch_size=1")))
    assert_equal(tensors(trainer), before)


def test_a_run_counts_bad_steps_names_the_clip_and_stops(make_trainer, monkeypatch, capsys):
    trainer = make_trainer("train.max_bad_steps=1", "checkpoint.every_steps=100")
    real = loop._forward
    monkeypatch.setattr(loop, "_forward", lambda t, e: infinite_loss(t, real(t, e)))
    with pytest.raises(
        TrainingError, match=r"step 2: the loss of .* is not finite.*max_bad_steps=1"
    ):
        loop.run(trainer, data(trainer))
    bad_key = next(data(make_trainer())).keys[0]
    assert f"step 1: the loss of {bad_key} is not finite; the step was skipped" in (
        capsys.readouterr().err
    )
    assert trainer.state.bad_steps == 2
    assert trainer.ema.num_updates == 0


def test_bad_steps_in_a_row_stop_a_run_and_others_do_not(make_trainer, monkeypatch, capsys):
    trainer = make_trainer("train.max_bad_steps=1", "train.steps=5", "checkpoint.every_steps=100")
    real, steps = loop._forward, iter(range(1, 100))

    def forward(trainer, example):
        terms = real(trainer, example)
        return infinite_loss(trainer, terms) if next(steps) in (1, 3, 5) else terms

    monkeypatch.setattr(loop, "_forward", forward)
    loop.run(trainer, data(trainer))
    assert (trainer.state.bad_steps, trainer.state.bad_in_a_row) == (3, 1)
    folder = Path(trainer.config.run.output)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [(event["step"], event["kind"]) for event in events] == [
        (step, "not_finite") for step in (1, 3, 5)
    ]
    # All samples of the step, so that it can be done again.
    (bad, loss), (_, other) = events[0]["samples"]
    assert loss is None and isinstance(other, float) and bad in events[0]["message"]
    beat = json.loads((folder / "heartbeat.json").read_text())
    assert (beat["status"], beat["step"], beat["total_steps"]) == ("finished", 5, 5)
    newest = folder / "checkpoints/step_00000005"
    assert f"all 5 steps are done: {newest}\n" in capsys.readouterr().err and newest.is_dir()


def test_the_lines_of_a_step_reach_the_disk_before_its_checkpoint(
    make_trainer, monkeypatch, tmp_path
):
    often = ("train.steps=2", "checkpoint.every_steps=1", "log.every_steps=1")
    trainer = make_trainer(*often, "checkpoint.asynchronous=false")
    done, rename = [], os.rename

    def note_flush(file):
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        if path.name == "metrics.jsonl":
            lines = path.read_text().splitlines()
            done.extend(f"line {json.loads(line)['step']}" for line in lines)

    def note_rename(source, target):
        done.append(Path(target).name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(os, "rename", note_rename)
    loop.run(trainer, data(trainer))
    for step in (1, 2):
        assert done.index(f"line {step}") < done.index(f"step_{step:08d}")


def test_a_loss_that_jumps_is_told_with_its_samples(make_trainer, monkeypatch):
    trainer = make_trainer("train.steps=3", "checkpoint.every_steps=100")
    real, steps = loop._forward, iter(range(1, 100))
    # What a hundred steps before would have left.
    trainer.spikes = SpikeWatch([100.0, 0.0, 0.1])

    def forward(trainer, example):
        terms = real(trainer, example)
        factor = 1e4 if next(steps) == 2 else 1.0
        return dataclasses.replace(terms, total=terms.total * factor)

    monkeypatch.setattr(loop, "_forward", forward)
    loop.run(trainer, data(trainer))
    lines = (Path(trainer.config.run.output) / "events.jsonl").read_text().splitlines()
    (event,) = map(json.loads, lines)
    assert (event["step"], event["kind"]) == (2, "loss_spike")
    assert len(event["samples"]) == trainer.global_batch
    assert trainer.state.spike_watch == trainer.spikes.state()


def test_the_deepspeed_dictionary_follows_the_configuration(small_world, tmp_path):
    config = small_world.config(tmp_path, "train.precision=bf16", "train.accumulation_steps=4")
    made = to_deepspeed(config, world_size=3, device_type="cpu")
    assert made["train_batch_size"] == 2 * 4 * 3
    assert made["zero_optimization"]["stage"] == 2
    assert made["gradient_clipping"] == 1.0
    assert made["bf16"]["enabled"]
    assert not made["fp16"]["enabled"]
    assert made["data_types"] == {"grad_accum_dtype": "fp32"}
