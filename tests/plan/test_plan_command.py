"""`train.py --plan` as a user calls it: what it prints, its exit status, its messages."""

import re
import shlex
from pathlib import Path

import pytest

from sat_udpdiff import train
from sat_udpdiff.config_io import load_config
from sat_udpdiff.plan import estimate_memory
from sat_udpdiff.plan.sizes import derive_sizes

ROOT = Path(__file__).parents[2]
# Those of panda_dense/ and evaluation/ belong to other programs.
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.parent.name not in ("panda_dense", "evaluation")
)
BASE = ["--base", "configs/5b.yaml", "configs/multitask.yaml"]


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch):
    monkeypatch.chdir(ROOT)


def call(capsys, *words):
    status = train.main([*words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def numbers(text, start):
    (line,) = (line for line in text.splitlines() if line.strip().startswith(start))
    return [float(word) for word in re.findall(r"\d+\.\d+", line)]


def test_the_command_of_the_issue(capsys):
    status, text, _ = call(capsys, *BASE, "--plan", "--gpus", "8", "--gpu-memory", "80")
    assert status == 0
    config = load_config(BASE[1:])
    memory = estimate_memory(config, sizes=derive_sizes(config), world_size=8)
    first = text.splitlines()[0]
    assert first.startswith("5b on 8 x a100: fits, ")
    assert f"{memory.total / 1e9:.1f} of 80 GB" in first
    assert "226 text + 17,550 video = 17,776" in text
    assert "5,570,677,376" in text
    assert numbers(text, "weights, bf16") == [round(memory.weights / 1e9, 2)]
    assert numbers(text, "fp32 weights and moments") == [round(memory.optimizer / 1e9, 2)]
    assert numbers(text, "activations") == [round(memory.activations / 1e9, 2)]
    assert numbers(text, "gradients, 1/8") == [round(memory.gradients / 1e9, 2)]
    assert numbers(text, "buckets") == [round(memory.buckets / 1e9, 2)]
    assert numbers(text, "text encoder") == [round(memory.text_encoder / 1e9, 2)]
    assert numbers(text, "peak") == [round(memory.total / 1e9, 2)]
    assert numbers(text, "checkpoint")[:2] == [66.85, 22.28]
    # The rows of the table add up to its peak.
    held = numbers(text, "held")[0]
    phases = [numbers(text, start)[0] for start in ("start", "encoding", "forward and", "optim")]
    assert held + max(phases) == pytest.approx(memory.total / 1e9, abs=0.02)
    assert "data.source=latents" in text.split("what would fit as well")[1]
    assert all(line == line.rstrip() and len(line) < 140 for line in text.splitlines())


def test_a_run_that_does_not_fit_exits_with_1_and_advice(capsys):
    status, text, _ = call(capsys, *BASE, "--plan", "--gpus", "1")
    assert status == 1
    assert "DOES NOT FIT" in text.splitlines()[0]
    title = "any one of these makes it fit, the cheapest first; in brackets the GPU time per sample"
    assert f"{title}\n  --gpus 4 " in text
    assert "  train.offload=optimizer " in text
    _, text, _ = call(capsys, *BASE, "--plan", "--gpus", "1", "--gpu-memory", "24")
    together, adapters = text.split("no single change is enough; together these are\n")[1].split(
        "or these\n"
    )
    assert "train.offload=" in together
    assert "lora.rank=64" in adapters
    assert "or GPUs of 136 GB and more: h200, b200" in text


@pytest.mark.parametrize(
    ("words", "step", "days"),
    [
        # 1710 TFLOP a sample.
        (["--gpu", "a100", "--mfu", "0.5"], "11.0 s at 50% of 312 TFLOP/s", "5.1 days"),
        (["--gpu", "H100"], "4.3 s at 40% of 989 TFLOP/s", "2.0 days"),
        (["--gpu", "h200", "--mfu", "1", "train.steps=1000"], "1.7 s at 100%", "28.8 minutes"),
    ],
)
def test_time_follows_gpu_and_mfu(words, step, days, capsys):
    status, text, _ = call(capsys, *BASE, "--plan", *words)
    assert status == 0
    assert step in text
    assert days in text


def test_memory_defaults_to_that_of_the_gpu(capsys):
    _, text, _ = call(capsys, *BASE, "--plan", "--gpu", "h200", "data.source=latents")
    assert " of 141 GB per GPU" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "--gpus: expected a whole number of at least 1, got 0"),
        (["--gpus", "2.5"], "--gpus: expected a whole number of at least 1, got 2.5"),
        (["--gpus", "many"], "--gpus: expected a whole number of at least 1, got many"),
        (["--gpu", "h20"], "--gpu: expected one of h200, "),
        (["--gpu-memory", "-1"], "--gpu-memory: expected GB above 0, such as 80, got -1"),
        (["--gpu-memory", "80GB"], "--gpu-memory: expected GB above 0, such as 80, got 80GB"),
        (["--mfu", "40"], "--mfu: expected a share above 0, up to 1, got 40"),
        (["--mfu", "nan"], "--mfu: expected a share above 0, up to 1, got nan"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(words, message, capsys):
    status, out, err = call(capsys, *BASE, "--plan", *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"train.py: {message}")
    assert err.count("\n") == 1


def test_options_of_the_plan_want_the_plan(capsys):
    status, out, err = call(capsys, *BASE, "--gpus", "4")
    assert (status, out) == (1, "")
    assert err == "train.py: --gpus: only together with --plan\n"


def test_a_damaged_manifest_is_one_line(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text("{")
    status, out, err = call(capsys, *BASE, "--plan", f"data.shards={tmp_path}")
    assert (status, out) == (2, "")
    assert str(tmp_path) in err
    assert err.count("\n") == 1


def test_training_in_fp32_has_a_table_and_no_time(capsys):
    status, text, _ = call(capsys, "--base", "configs/tiny.yaml", "--plan", "--gpus", "1")
    assert status == 0
    assert "time                unknown" in text
    assert "weights, fp32" in text


def command_of(path):
    """The value files that a header's command names."""
    head = (ROOT / path).read_text().split("Command:")[1]
    lines = [line.lstrip("#").strip() for line in head.splitlines()]
    count = next(i for i, line in enumerate(lines) if not line.endswith("\\")) + 1
    words = shlex.split(" ".join(line.rstrip("\\") for line in lines[:count]))
    return [word for word in words if word.startswith("configs/") and word.endswith(".yaml")]


@pytest.mark.parametrize("path", CONFIGS)
def test_every_value_file_plans(path, capsys):
    files = command_of(path)
    assert path in files
    status, text, err = call(capsys, "--base", *files, "--plan", "data.shards=none")
    assert status in (0, 1), err
    assert ("DOES NOT FIT" in text) == (status == 1)
    assert f"{derive_sizes(load_config(files)).parameters:,}" in text
    # What the paper trained on.
    assert status == 0
