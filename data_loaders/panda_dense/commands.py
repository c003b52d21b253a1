"""The command line of `python -m data_loaders.panda_dense`."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data_loaders.atomic_file import write_atomically
from data_loaders.panda_dense import pipeline
from data_loaders.panda_dense.fleet import NEW_PROCESS, python_command, run_fleet
from data_loaders.panda_dense.report import PAGE
from data_loaders.panda_dense.runner import LostDeviceError, TooManyFailuresError
from data_loaders.panda_dense.settings import PandaConfig, dump, load, resolve_device
from data_loaders.panda_dense.stages import STAGES, make_steps
from data_loaders.panda_dense.status import status_of, table
from data_loaders.panda_dense.steps import Step, forgotten_with, redo, refuse_beside_others
from data_loaders.panda_dense.stopping import heeding_signals
from data_loaders.panda_dense.store import Store
from data_loaders.schema import DataError
from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_io import add_help_config
from sat_udpdiff.config_sources import files_and_words

_CONFIG = "config.yaml"
_DESCRIPTION = """\
Build Panda-Dense: videos to shards with captions, entity masks and depth.

    run        all stages, from videos to shards
    ingest filter select cut segment propagate depth caption write
               one stage, of what the stages before it have done
    status     what is done, what was left out, and why
    plan       time, memory and space that the whole would take
    convert    EntitySeg's published checkpoints to a folder that `segment` reads

To go on after an interruption, on any number of machines, run the same command again; processes
that run at the same time share the work. OUT/config.yaml keeps the settings for later commands."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_loaders.panda_dense",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("run", *STAGES):
        stage = commands.add_parser(name, help="all stages" if name == "run" else "one stage")
        _add_config(stage)
        stage.add_argument("--workers", type=_count, help="processes (default: one for each GPU)")
        stage.add_argument("--dry-run", action="store_true", help="say what would be done, and end")
        stage.add_argument(
            "--redo",
            choices=STAGES,
            metavar="STAGE",
            help="forget what this stage has done, and what was made from it",
        )
        stage.add_argument(
            "--retry",
            metavar="REASON",
            action="append",
            default=[],
            help="try clips again that were left out for this reason; 'failed': "
            "all that could not be done",
        )
        stage.add_argument(
            "--again",
            action="store_true",
            help="list the videos again: new ones are added at the end",
        )
        if name == "run":
            stage.add_argument("--until", choices=STAGES, metavar="STAGE", help="end after a stage")
        # Of the processes of --workers: the one that started them says how it ended.
        stage.add_argument("--in-fleet", action="store_true", help=argparse.SUPPRESS)
    show = commands.add_parser("status", help="what is done, what was left out, and why")
    show.add_argument("--output", type=Path, required=True, metavar="OUT")
    plan = commands.add_parser("plan", help="time, memory and space")
    _add_config(plan)
    plan.add_argument("--clips", type=_count, default=300_000, help="clips to end with")
    plan.add_argument("--gpus", type=_count, default=8, help="GPUs of one machine")
    plan.add_argument("--cores", type=_count, default=8, help="CPU cores for each GPU")
    plan.add_argument("--tasks", type=_count, default=64, help="tasks of a Slurm array, a GPU each")
    convert = commands.add_parser("convert", help="EntitySeg's checkpoints")
    convert.add_argument("source", type=Path, help="the published .pth")
    convert.add_argument("folder", type=Path, help="to write")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="YAML value files; later ones win",
    )
    parser.add_argument("--output", type=Path, metavar="OUT", help="folder of the data set")
    parser.add_argument("--videos", help="folder of videos, or of shards: ingest.videos")
    parser.add_argument("--csv", help="Panda-70M's table: ingest.csv")
    parser.add_argument("--captions", help="table of captions: ingest.captions")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as depth.seed=1")
    add_help_config(parser, cls=PandaConfig)


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text!r}")
    return int(text)


def _read_config(arguments: argparse.Namespace) -> PandaConfig:
    """Of the files and words of the command line, else as the data set began."""
    files = list(arguments.config)
    kept = arguments.output / _CONFIG if arguments.output else None
    if not files and kept is not None and kept.is_file():
        files = [str(kept)]
    files, words = files_and_words(files)
    for name in ("videos", "csv", "captions"):
        value = getattr(arguments, name)
        if value is not None:
            words.append(f"ingest.{name}={Path(value).expanduser().resolve()}")
    config = load(files, [*words, *arguments.overrides])
    if not config.ingest.videos and kept is not None and kept.is_file():
        # Other files say nothing of where the videos are: that was said when they were listed.
        config = replace(config, ingest=load([str(kept)]).ingest)
    return config


def _stages(arguments: argparse.Namespace) -> int:
    if arguments.output is None:
        raise DataError("--output: expected the folder of the data set")
    config = _read_config(arguments)
    store = Store(root=arguments.output)
    names = _names(arguments)
    steps = make_steps(store, config=config)
    if not arguments.in_fleet:
        _check(arguments, steps=steps)
    if arguments.dry_run:
        return _dry_run(arguments, steps=steps, names=names)
    if not arguments.in_fleet:
        _prepare(arguments, store=store, steps=steps, config=config)
    workers = arguments.workers or _devices(config)
    # A GPU that is lost wants a new process, which somebody has to start.
    on_gpu = resolve_device(config.run.device).type != "cpu"
    if not arguments.in_fleet and (workers > 1 or on_gpu):
        status = run_fleet(python_command(_worker_arguments(arguments)), workers=workers)
    else:
        pipeline.run(steps, names=names, wait_seconds=config.run.wait_seconds)
        status = 0
    if not arguments.in_fleet:
        for line in _summary(store, config=config):
            print(line)
        for line in _end_of(make_steps(store, config=config), names=names):
            print(line)
    return status


def _check(arguments: argparse.Namespace, *, steps: Sequence[Step]) -> None:
    """Refuse what cannot work before anything is done or taken back.

    Of `run` all stages are looked at, also those behind `--until`: it will be their turn.
    """
    takes_back = [name for name in ("redo", "retry", "again") if getattr(arguments, name)]
    if takes_back and "SLURM_JOB_ID" in os.environ:
        raise DataError(
            f"--{takes_back[0]}: every task of a job would take back what the others do; give it "
            "once, with --dry-run or a stage, before the job"
        )
    chosen = STAGES if arguments.command == "run" else (arguments.command,)
    redone = forgotten_with(steps, name=arguments.redo) if arguments.redo else []
    for step in steps:
        if step.name not in redone:
            step.check_settings()
    for step in steps:
        if step.name in chosen and (step.name in redone or not step.is_complete()):
            step.check()


def _end_of(steps: Sequence[Step], *, names: Sequence[str]) -> Iterator[str]:
    """What a run that ended has made, or has not done."""
    for step in steps:
        if step.name in names and not step.is_complete():
            yield f"\nnot complete: {step.name}: {'; '.join(step.outlook())}"
            return
    failed = sum(step.count_for(["failed"]) for step in steps)
    if failed:
        yield f"\n{failed:,} clips could not be done: --retry failed tries them again"
    if STAGES[-1] in names:
        yield f"\n{'; '.join(steps[-1].outlook())}; look at {steps[-1].store.root / PAGE}"


def _names(arguments: argparse.Namespace) -> Sequence[str]:
    """The stages that are to be done."""
    if arguments.command != "run":
        return (arguments.command,)
    return STAGES if arguments.until is None else STAGES[: STAGES.index(arguments.until) + 1]


def _prepare(
    arguments: argparse.Namespace, *, store: Store, steps: Sequence[Step], config: PandaConfig
) -> None:
    """What is done once, before the processes begin."""
    if arguments.redo:
        forgotten = redo(store, steps, name=arguments.redo)
        logging.info("forgotten: %s", ", ".join(forgotten))
    changed = [step for step in steps if step.has_changed()]
    if changed:
        refuse_beside_others(store, steps)
        for step in changed:
            step.adopt_settings()
        for step in steps:
            step.look_again()
        names = ", ".join(step.name for step in changed)
        logging.info("new settings of %s: what they change is done anew", names)
    if arguments.retry or arguments.again:
        refuse_beside_others(store, steps)
        count = sum(step.reconsider(retry=arguments.retry, again=arguments.again) for step in steps)
        for step in steps:
            step.look_again()
        if arguments.retry:
            if not count and not arguments.again:
                raise DataError(
                    f"--retry: no clip was left out for {' or '.join(arguments.retry)}; `status` "
                    "lists the reasons there are"
                )
            logging.info("%d clips are tried again", count)
    store.root.mkdir(parents=True, exist_ok=True)
    write_atomically(store.root / _CONFIG, dump(config).encode())


def _worker_arguments(arguments: argparse.Namespace) -> list[str]:
    """Of a process that has only to go on: the settings are in OUT/config.yaml by now."""
    until = getattr(arguments, "until", None)
    words = [arguments.command, "--output", str(arguments.output), "--workers", "1", "--in-fleet"]
    return words if until is None else [*words, "--until", until]


def _devices(config: PandaConfig) -> int:
    """Processes to start where the user did not say."""
    import torch

    is_started_by_another = any(name in os.environ for name in ("SLURM_PROCID", "RANK"))
    if is_started_by_another or resolve_device(config.run.device).type == "cpu":
        return 1
    return max(1, torch.cuda.device_count())


def _dry_run(arguments: argparse.Namespace, *, steps: Sequence[Step], names: Sequence[str]) -> int:
    if arguments.redo:
        print(f"forgotten would be: {', '.join(forgotten_with(steps, name=arguments.redo))}")
    if arguments.retry:
        count = sum(step.count_for(arguments.retry) for step in steps)
        print(f"tried again would be: {count:,} clips")
    for step in steps:
        if step.name in names:
            for line in step.outlook():
                print(f"{step.name}: {line}")
    return 0


def _summary(store: Store, *, config: PandaConfig) -> list[str]:
    stages, clips = status_of(store, STAGES[:-1], claim_seconds=config.run.claim_seconds)
    return list(table(stages, clips=clips))


def _status(arguments: argparse.Namespace) -> int:
    if not (arguments.output / _CONFIG).is_file():
        raise DataError(f"--output {arguments.output}: expected a folder that `run` made")
    arguments.config, arguments.overrides = [], []
    arguments.videos = arguments.csv = arguments.captions = None
    for line in _summary(Store(root=arguments.output), config=_read_config(arguments)):
        print(line)
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from data_loaders.panda_dense.plan import plan

    config = _read_config(arguments)
    store = Store(root=arguments.output) if arguments.output else None
    for line in plan(
        config,
        clips=arguments.clips,
        gpus=arguments.gpus,
        tasks=arguments.tasks,
        cores=arguments.cores,
        store=store,
    ):
        print(line)
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from data_loaders.panda_dense.entity_convert import convert_checkpoint

    for line in convert_checkpoint(arguments.source, arguments.folder).lines():
        print(line)
    return 0


_COMMANDS = {"status": _status, "plan": _plan, "convert": _convert}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0; 1 for what cannot go on; 2 for a wrong setting; 75 where a new process is
        needed; 130 and 143 when interrupted.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s: %(message)s")
    for name in ("matplotlib", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    arguments = _parser().parse_args(argv)
    try:
        with heeding_signals():
            return _COMMANDS.get(arguments.command, _stages)(arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (DataError, OSError, ValueError, TooManyFailuresError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except LostDeviceError as error:
        print(f"the device is lost to this process: {error}", file=sys.stderr)
        return NEW_PROCESS
    except KeyboardInterrupt:
        print("interrupted: what is done stays; run the same command to go on", file=sys.stderr)
        return 130
