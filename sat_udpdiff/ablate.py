r"""The paper's ablations: train every row under equal conditions, judge it, and say what holds.

    python sat_udpdiff/ablate.py --config configs/evaluation/ablation_tiny.yaml --output OUT

Trains each arm with several seeds on the same clips for as many steps, samples the same held-out
prompts with the same seeds, and writes OUT/report.md, report.html and report.json: the paper's
tables with means and intervals beside its numbers, and which of its orderings hold here. To go on
after an interruption, run the same command again; what is done is not done twice.
"""

import argparse
import fcntl
import json
import logging
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from sat_udpdiff.ablation.estimate import plan
from sat_udpdiff.ablation.grids import ordering_grid
from sat_udpdiff.ablation.orderings import summary
from sat_udpdiff.ablation.recipes import ARMS
from sat_udpdiff.ablation.report import NUMBERS, PAGE, REPORT, Report, write_report
from sat_udpdiff.ablation.samples import write_sheets
from sat_udpdiff.ablation.scores import COLUMNS
from sat_udpdiff.ablation.settings import AblationConfig, load
from sat_udpdiff.ablation.work import LOCK, Ablation, Unit
from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_io import add_help_config
from sat_udpdiff.config_sources import files_and_words
from sat_udpdiff.evaluation.machine import machine_facts
from sat_udpdiff.tiny.recipe import REPOSITORY


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 1 = something is missing, 2 = it cannot be done."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = _parser().parse_intermixed_args(argv)
    words = sys.argv[1:] if argv is None else argv
    try:
        if options.list:
            print("\n".join(f"{arm.name}: {', '.join(arm.paths)}" for arm in ARMS.values()))
            return 0
        if options.output is None:
            raise ValueError("--output: expected a folder, got nothing")
        if options.report and not options.output.is_dir():
            raise ValueError(f"--output: there is no ablation in {options.output}")
        config = read_settings(options)
        # Programs run in the repository, wherever this was started.
        ablation = Ablation(config=config, output=options.output.expanduser().resolve())
        units = ablation.check(for_work=not options.report)
        if options.plan:
            for line in plan(ablation, units):
                print(line)
            return 0
        if options.report:
            return tell(ablation, units, made_with=facts_of(ablation.output))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        command = shlex.join(["python", "sat_udpdiff/ablate.py", *words])
        with alone_in(ablation.output):
            ablation.prepare()
            ablation.run(units)
            return tell(ablation, units, made_with={"command": command, **machine_facts(device)})
    except (ValueError, OSError) as error:
        print(f"ablate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; to go on, run the same command again", file=sys.stderr)
        return 130


def read_settings(options: argparse.Namespace) -> AblationConfig:
    """The settings of files and words.

    Raises:
        ConfigError: One is wrong, or no file is named.
    """
    files, words = files_and_words(options.config)
    if not files:
        raise ConfigError(
            "--config: expected value files, such as configs/evaluation/ablation_tiny.yaml or "
            "ablation_paper.yaml, got none"
        )
    return from_here(load(files, [*words, *options.overrides]))


def from_here(config: AblationConfig) -> AblationConfig:
    """The settings with absolute names of files and folders: programs run in the repository."""
    here = Path.cwd()
    if here == REPOSITORY:
        return config

    def absolute(name: str) -> str:
        path = Path(name).expanduser()
        return str(here / path) if name and path.exists() else name

    data, evaluation = config.data, config.evaluation
    prompts, reference = evaluation.prompts, evaluation.reference
    evaluation = replace(
        evaluation,
        prompts=replace(prompts, file=absolute(prompts.file)),
        reference=replace(reference, shards=absolute(reference.shards)),
        fvd=replace(evaluation.fvd, weights=absolute(evaluation.fvd.weights)),
        vbench=replace(
            evaluation.vbench,
            **{
                name: absolute(getattr(evaluation.vbench, name)) for name in ("dino", "clip", "amt")
            },
        ),
    )
    return replace(config, data=replace(data, shards=absolute(data.shards)), evaluation=evaluation)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other calls of this program out of a folder, as long as this one lives.

    Raises:
        ValueError: Another one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"--output: another ablation is at work in {folder}") from None
        yield


def facts_of(folder: Path) -> dict[str, Any]:
    """What the report that lies in a folder was made with; empty without one."""
    try:
        return json.loads((folder / NUMBERS).read_text(encoding="utf-8"))["facts"]
    except (OSError, ValueError, KeyError):
        return {}


def tell(ablation: Ablation, units: Sequence[Unit], *, made_with: Mapping[str, Any]) -> int:
    """Write the report of what is there, and print the verdicts; 1 where something is missing."""
    book, missing = ablation.book(units)
    report = Report(
        config=ablation.config,
        book=book,
        missing=missing,
        facts={**made_with, **ablation.facts(units)},
        score_facts=ablation.score_facts(units),
        sheets=write_sheets(units, folder=ablation.output),
    )
    write_report(report, ablation.output)
    judgements = report.judgements
    print(f"\n{ordering_grid(judgements, columns=COLUMNS[ablation.config.scores]).markdown()}")
    print(f"\n{summary(judgements)}")
    for name, why in missing.items():
        print(f"missing: {name}: {why}", file=sys.stderr)
    print(f"\nLook at {ablation.output / PAGE}, or {ablation.output / REPORT}")
    return 1 if missing else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ablate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", nargs="+", action="extend", default=[], metavar="FILE",
        help="value files; later ones win")  # fmt: skip
    add("--output", type=Path, metavar="OUT", help="folder of trainings, samples and the report")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="such as arms=[depth,baseline] seeds=[0]")
    add("--plan", action="store_true", help="say what would be done and how long it takes, and end")
    add("--report", action="store_true", help="only write the report of what is there")
    add("--list", action="store_true", help="list the arms with their value files, and end")
    add_help_config(parser, cls=AblationConfig)
    return parser


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


if __name__ == "__main__":
    # A time limit or a preemption: programs save and end, as with Ctrl-C.
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
