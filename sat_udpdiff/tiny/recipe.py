"""How the tiny network is trained: data, latents and settings, for everything that trains it.

Each step is a command that a user would type, and is printed. Each goes on where it was stopped,
and does nothing where all is done.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RECOLOURINGS = 4
"""A clip is seen five times, in half of them with its entities."""
GLOBAL_BATCH = 4
"""Clips of a step, over all ranks."""
SETTINGS = ("optimizer.lr=6e-3", "optimizer.schedule=linear")
"""Few steps: small batches, large steps that end at 0."""


def training_settings(*, ranks: int) -> list[str]:
    """Settings of a training on top of configs/tiny.yaml: the same batch whatever the ranks.

    Raises:
        ValueError: The batch cannot be dealt out to so many ranks.
    """
    if ranks < 1 or GLOBAL_BATCH % ranks:
        raise ValueError(f"ranks: expected a number that divides {GLOBAL_BATCH}, got {ranks}")
    return [f"train.micro_batch_size={GLOBAL_BATCH // ranks}", *SETTINGS]


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


def make_latents(
    latents: Path,
    *,
    shards: Path | str,
    base: Sequence[str],
    recolourings: int = RECOLOURINGS,
    processes: int = 1,
) -> Path:
    """What the frozen encoders make of the shards, made once for all trainings on `base` files."""
    launcher = "python"
    if processes > 1:
        launcher += f" -m torch.distributed.run --standalone --nproc_per_node {processes}"
    call(
        f"{launcher} -m data_loaders.latents",
        [
            *("--base", *base),
            *("--shards", shards, "--output", latents, "--recolourings", recolourings),
        ],
    )
    return latents


def call(program: str, arguments: Sequence[object]) -> None:
    """Print a command as a user would type it, and run it from the repository.

    Raises:
        SystemExit: It ended with another status than 0.
    """
    words = [*program.split(), *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    done = subprocess.run(startable(words), cwd=REPOSITORY, check=False)  # noqa: S603 - no shell
    if done.returncode:
        sys.exit(f"the command above ended with status {done.returncode}")


def startable(words: Sequence[str]) -> list[str]:
    """A command as typed (`python ...`, `deepspeed ...`) with the programs of this environment."""
    program, *rest = words
    if program == "deepspeed":
        # The launcher's first line is `#!python`; this also works where the environment was moved.
        return [sys.executable, str(Path(sys.executable).parent / "deepspeed"), *rest]
    assert program == "python"
    return [sys.executable, *rest]
