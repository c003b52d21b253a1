r"""The paper's ablations: train every row under equal conditions, judge it, and say what holds.

    python sat_udpdiff/ablate.py --config configs/evaluation/ablation_tiny.yaml --output OUT

Trains each arm with several seeds on the same clips for as many steps, samples the same held-out
prompts with the same seeds, and writes OUT/report.md, report.html and report.json: the paper's
tables with means and intervals beside its numbers, and which of its orderings hold here. To go on
after an interruption, run the same command again; what is done is not done twice.
"""

import argparse
import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from sat_udpdiff.ablation.estimate import plan
from sat_udpdiff.ablation.grids import ordering_grid
from sat_udpdiff.ablation.orderings import summary
from sat_udpdiff.ablation.recipes import ARMS
from sat_udpdiff.ablation.report import PAGE, REPORT, Report, write_report
from sat_udpdiff.ablation.samples import write_sheets
from sat_udpdiff.ablation.scores import COLUMNS
from sat_udpdiff.ablation.settings import AblationConfig, load
from sat_udpdiff.ablation.work import Ablation, Unit
from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_io import add_help_config
from sat_udpdiff.config_sources import files_and_words
from sat_udpdiff.evaluation.machine import machine_facts


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
        units = ablation.check()
        if options.plan:
            for line in plan(ablation, units):
                print(line)
            return 0
        if not options.report:
            ablation.prepare()
            ablation.run(units)
        return tell(
            ablation, units, command=shlex.join(["python", "sat_udpdiff/ablate.py", *words])
        )
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
    return load(files, [*words, *options.overrides])


def tell(ablation: Ablation, units: Sequence[Unit], *, command: str) -> int:
    """Write the report of what is there, and print the verdicts; 1 where something is missing."""
    book, missing = ablation.book(units)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = Report(
        config=ablation.config,
        book=book,
        missing=missing,
        facts={"command": command, **ablation.facts(units), **machine_facts(device)},
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
