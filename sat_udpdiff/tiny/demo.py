"""The whole method in minutes: shards, fine-tuning on both tasks, samples, numbers, pictures.

    python -m sat_udpdiff.tiny.demo --output demo          (or: make demo)

Data and training are commands that a user would type, and are printed; every sample's JSON holds
the command that makes it again. A second call goes on where the first one stopped. The numbers at
the end would expose a fake: each is printed beside the value that an unrelated map, or the other
task with the same seed, gives.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from data_loaders.synthetic import held_out_prompts
from sat_udpdiff.config import TASKS, Task
from sat_udpdiff.config_io import load_config
from sat_udpdiff.generation import GeneratedSample, SampleRequest
from sat_udpdiff.loading import Model
from sat_udpdiff.outputs import contact_sheet, write_sample
from sat_udpdiff.tiny.demo_report import DemoNumbers, measure, table
from sat_udpdiff.training.metrics import read_metrics

REPOSITORY = Path(__file__).parents[2]
_SHEETS_SHOWN = 3
_RECOLOURINGS = 4
"""A clip is seen five times, in half of them with its entities."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run every step that is not done; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo"))
    parser.add_argument("--clips", type=int, default=512, help="synthetic training clips")
    parser.add_argument("--steps", type=int, default=640, help="optimizer steps of each training")
    parser.add_argument("--ranks", type=int, default=2, help="processes per training")
    parser.add_argument("--prompts", type=int, default=6, help="held-out prompts, each sampled")
    options = parser.parse_args(argv)
    # Training runs in the repository, wherever this was started.
    options.output = options.output.resolve()
    started = time.monotonic()
    shards = make_shards(options.output, clips=options.clips)
    latents = make_latents(options.output, shards=shards)
    for name in ("multitask", "baseline"):
        train(name, options=options, latents=latents)
        show_data_wait(options.output / name)
    prompts = held_out_prompts(options.prompts, seed=0, style="long")
    run = options.output / "multitask"
    multitask = load_run(run)
    samples = {task: sample(multitask, prompts, task=task, run=run) for task in TASKS}
    run = options.output / "baseline"
    baseline = sample(load_run(run), prompts, task=None, run=run)
    numbers = measure(samples, baseline=baseline)
    show(numbers, samples=samples, output=options.output)
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes in all")
    return 0


def make_shards(output: Path, *, clips: int) -> Path:
    """The simple synthetic world through the data set pipeline, as one's own videos would go."""
    source = output / "source"
    if not (source / "manifest.json").exists():
        shutil.rmtree(source, ignore_errors=True)
        call(
            "python -m data_loaders.synthetic",
            [
                source,
                *("--clips", clips, "--size", "32x48", "--world", "simple"),
                *("--seed", 0, "--workers", 2),
            ],
        )
    # Goes on where it was, and does nothing where all is done.
    call(
        "python -m data_loaders.panda_dense run",
        [
            *("--config", "configs/panda_dense/synthetic.yaml", "--videos", source),
            *("--output", output / "data", "--workers", 2),
        ],
    )
    return output / "data" / "shards"


def make_latents(output: Path, *, shards: Path) -> Path:
    """What the frozen encoders make of the shards, made once for both trainings."""
    latents = output / "latents"
    call(
        "python -m data_loaders.latents",
        [
            *("--base", "configs/tiny.yaml", "configs/multitask.yaml"),
            *("--shards", shards, "--output", latents, "--recolourings", _RECOLOURINGS),
        ],
    )
    return latents


def train(name: str, *, options: argparse.Namespace, latents: Path) -> None:
    """Fine-tune the shipped base network as `configs/<name>.yaml` says, or go on with it."""
    call(
        f"deepspeed --num_gpus {options.ranks} --quiet sat_udpdiff/train.py",
        [
            "--base",
            "configs/tiny.yaml",
            f"configs/{name}.yaml",
            "data.source=latents",
            f"data.latents={latents}",
            f"run.output={options.output / name}",
            f"train.steps={options.steps}",
            # Few steps: small batches, large steps that end at 0.
            "train.micro_batch_size=2",
            "optimizer.lr=6e-3",
            "optimizer.schedule=linear",
            f"checkpoint.every_steps={options.steps}",
        ],
    )


def show_data_wait(run: Path) -> None:
    """Print how much of the training went by waiting for data."""
    lines = read_metrics(run, kind="training")
    waited = sum(line["data_wait_seconds"] for line in lines)
    share = waited / sum(line["step_seconds"] for line in lines)
    print(f"training waited for data for {share:.1%} of its time")


def call(program: str, arguments: Sequence[object]) -> None:
    """Print a command as a user would type it, and run it from the repository."""
    words = [*program.split(), *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    programs = {"python": sys.executable, "deepspeed": Path(sys.executable).parent / "deepspeed"}
    words[0] = str(programs[words[0]])
    if words[0].endswith("deepspeed"):
        # The launcher's first line is `#!python`; this also works where the environment was moved.
        words[:1] = [sys.executable, words[0]]
    done = subprocess.run(words, cwd=REPOSITORY, check=False)  # noqa: S603 - no shell, our words
    if done.returncode:
        sys.exit(f"demo: the command above ended with status {done.returncode}")


def load_run(folder: Path) -> Model:
    """A finished run, ready to be sampled."""
    config = load_config([str(folder / "config.yaml")], [])
    return Model.load(str(folder), config=config, device=torch.device("cpu"))


def sample(
    model: Model, prompts: Sequence[str], *, task: Task | None, run: Path
) -> list[GeneratedSample]:
    """One sample per prompt, seed = number of the prompt, written beside the run."""
    print(f"\nsampling {len(prompts)} prompts, task {task or 'none'}", flush=True)
    data, samples = model.config.data, []
    for seed, prompt in enumerate(prompts):
        request = SampleRequest(
            prompt=prompt,
            task=task,
            seeds=(seed,),
            num_frames=data.num_frames,
            height=data.height,
            width=data.width,
        )
        (made,) = model.generate(request)
        folder = run / "samples" / f"{seed:03d}_{task or 'rgb'}"
        record = model.record(made, request=request, folder=folder)
        write_sample(made, folder, config=model.config, record=record, overwrite=True)
        samples.append(made)
    return samples


def show(numbers: DemoNumbers, *, samples: dict[str, list[GeneratedSample]], output: Path) -> None:
    """Print the numbers, write them and one picture of the first samples of each task."""
    print("\n" + table(numbers))
    (output / "report.json").write_text(json.dumps(asdict(numbers), indent=1) + "\n")
    chosen = [s for pair in zip(*samples.values(), strict=True) for s in pair]
    sheets = [contact_sheet(sample) for sample in chosen[: 2 * _SHEETS_SHOWN]]
    canvas = Image.new(
        "RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white"
    )
    top = 0
    for sheet in sheets:
        canvas.paste(sheet, (0, top))
        top += sheet.height
    canvas.save(output / "contact_sheet.png", optimize=True)
    print(f"\nLook at {output / 'contact_sheet.png'}, and at the videos in")
    print(f"{output / 'multitask' / 'samples'}/*/side_by_side.mp4")


if __name__ == "__main__":
    sys.exit(main())
