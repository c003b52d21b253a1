"""The whole method in minutes: shards, fine-tuning on both tasks, samples, numbers, pictures.

    python -m sat_udpdiff.tiny.demo --output demo          (or: make demo)

Data and training are commands that a user would type, and are printed; every sample's JSON holds
the command that makes it again. A second call goes on where the first one stopped. The numbers at
the end would expose a fake: each is printed beside the value that an unrelated map, or the other
task with the same seed, gives.
"""

import argparse
import json
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
from sat_udpdiff.tiny.recipe import call, make_latents, make_shards, training_settings
from sat_udpdiff.training.run_log import read_metrics

_SHEETS_SHOWN = 3
_BASE = ("configs/tiny.yaml", "configs/multitask.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run every step that is not done; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo"))
    parser.add_argument("--clips", type=int, default=512, help="synthetic training clips")
    parser.add_argument("--steps", type=int, default=640, help="optimizer steps of each training")
    parser.add_argument(
        "--ranks", type=int, default=2, choices=(1, 2, 4), help="processes per training"
    )
    parser.add_argument("--prompts", type=int, default=6, help="held-out prompts, each sampled")
    options = parser.parse_args(argv)
    # Training runs in the repository, wherever this was started.
    options.output = options.output.resolve()
    started = time.monotonic()
    shards = make_shards(options.output, clips=options.clips)
    latents = make_latents(options.output / "latents", shards=shards, base=_BASE)
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
            *training_settings(ranks=options.ranks),
            f"checkpoint.every_steps={options.steps}",
        ],
    )


def show_data_wait(run: Path) -> None:
    """Print how much of the training went by waiting for data."""
    lines = read_metrics(run, kind="training")
    waited = sum(line["data_wait_seconds"] for line in lines)
    share = waited / sum(line["step_seconds"] for line in lines)
    print(f"training waited for data for {share:.1%} of its time")


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
