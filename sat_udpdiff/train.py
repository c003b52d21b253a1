r"""Train: from clips to a network that makes a video and its dense map in one pass.

    deepspeed --num_gpus 8 sat_udpdiff/train.py --base configs/5b.yaml configs/multitask.yaml \
        data.shards=SHARDS run.output=RUN

torchrun, srun, mpirun and plain python start it as well. To resume, run the same command again.
With --plan nothing starts: it prints what the run will be, and whether it fits.
Exit status: 0 = train.steps are done; 75 = stopped by a signal and saved; others = it failed.
"""

import argparse
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from data_loaders.loader import Batches
from sat_udpdiff.config import Config
from sat_udpdiff.config_checks import check_device, keep_global_batch, require
from sat_udpdiff.config_io import parse_cli, save_config
from sat_udpdiff.diffusion.schedule import make_schedule
from sat_udpdiff.distributed import (
    Place,
    close_distributed,
    init_distributed,
    is_lost_rank,
    leave,
    node_name,
    tell_end,
)
from sat_udpdiff.parallel.layout import lay_out
from sat_udpdiff.plan import dry_run_report, machine, plan_report
from sat_udpdiff.training import ranks
from sat_udpdiff.training.checkpoint_files import clear_staging
from sat_udpdiff.training.hang_watch import HangWatch
from sat_udpdiff.training.loop import RESUME, Trainer, TrainingError, run
from sat_udpdiff.training.preflight import preflight
from sat_udpdiff.training.run_lock import RunLock, hold
from sat_udpdiff.training.run_log import log_by_rank, naming
from sat_udpdiff.training.setup import (
    build_engine,
    check_weights,
    find_resume_point,
    load_encoders,
    restore_or_start,
    say,
)
from sat_udpdiff.training.stopping import STOPPED, StopRequest
from sat_udpdiff.training.validation import make_validation
from sat_udpdiff.weights.beside import frozen_beside
from sat_udpdiff.weights.run_folder import CHECKPOINTS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options, config = parse_cli(
        _with_weights(arguments), description=__doc__ or "", extra=_add_options
    )
    try:
        if machine.is_planning(options):
            return show_plan(config, options=options)
        if options.dry_run:
            sys.stdout.write(dry_run_report(config))
            return 0
        data = "data.shards" if config.data.source == "video" else "data.latents"
        require(config, data, "run.output")
        with StopRequest() as stop:
            return start(config, stop=stop)
    except (ValueError, OSError, TrainingError) as error:
        # The user's to mend: one line, no traceback.
        tell_end(f"train.py: {error}")
        return leave(1)
    except KeyboardInterrupt:
        return leave(128 + signal.SIGINT)
    except SystemExit as end:  # of the preflight, or by a signal before the first step
        return leave(int(end.code or 0))


def start(config: Config, *, stop: StopRequest) -> int:
    """Meet the other ranks and train; returns the exit status.

    Raises:
        ValueError: As all of `train`; also OSError and TrainingError.
    """
    # A rank that hangs is to tell where before the others give up waiting for it.
    waiting = 10.0 + (config.run.hang_minutes or 20.0)
    place = init_distributed(timeout_minutes=waiting)
    log_by_rank(place)
    try:
        check_device(config, device=place.device.type)
        config = keep_global_batch(config, processes=place.world_size)
        with HangWatch(minutes=config.run.hang_minutes, place=place) as hang:
            with hold(Path(config.run.output), place=place, tell=say) as lock:
                is_done = train(config, place=place, stop=stop, lock=lock, hang=hang)
            # No rank ends while another is at work: launchers end all when the first one is gone.
            ranks.wait_for_all(place=place)
    except (ValueError, OSError, TrainingError):
        raise
    except Exception as error:
        # A bug, or the end of another rank; which of many ranks it was stands before the rest.
        sys.stderr.write(f"train.py: rank {place.rank} of {place.world_size} on {node_name()}: ")
        if is_lost_rank(error):
            reason = str(error).strip().splitlines()[0]
            said = "unless it was killed, it has said why"
            sys.stderr.write(f"another rank is gone ({reason}); {said}; {RESUME}\n")
        else:
            sys.stderr.write(f"failed\n{traceback.format_exc()}")
        return leave(1)
    close_distributed()
    return 0 if is_done else STOPPED


def show_plan(config: Config, *, options: argparse.Namespace) -> int:
    """Print the plan; 0 where the run fits, 1 where it does not, 2 where there is none."""
    try:
        gpus = machine.read_machine(options)
        config = keep_global_batch(config, processes=gpus.gpus)
        report, fits = plan_report(config, machine=gpus)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"train.py: {error}\n")
        return 2
    sys.stdout.write(report)
    return 0 if fits else 1


def train(
    config: Config, *, place: Place, stop: StopRequest, lock: RunLock | None, hang: HangWatch
) -> bool:
    """One run, from where it stands to its end; returns whether all steps are done.

    `lock` holds its folder, on the first rank.
    """
    output = Path(config.run.output)
    layout = lay_out(config.parallel, place=place)
    if place.is_main:
        # What a killed save left takes room that the run is about to ask for.
        clear_staging(output / CHECKPOINTS, tell=say)
    if config.run.preflight:
        preflight(config, place=place)
    hang.renew()
    resume_point = find_resume_point(config, place=place)
    check_weights(config, place=place, resume_point=resume_point)
    first = resume_point.content["state"]["samples_seen"] if resume_point else 0
    data = Batches(
        config,
        place_rank=layout.at.data,
        world_size=layout.sizes.data,
        start=first,
        device=place.device,
    )
    with hang.paused():  # for as long as downloads, and the encoding of held-out clips, may take
        encoders = load_encoders(config, device=place.device)
        validation = make_validation(config, encoders=encoders, place=place)
    engine = build_engine(config, place=place, resume_point=resume_point)
    hang.renew()
    state, ema = restore_or_start(engine, config=config, resume_point=resume_point)
    # A start that fails leaves nothing behind.
    if place.is_main:
        output.mkdir(parents=True, exist_ok=True)
        with naming(output / "config.yaml"):
            save_config(config, output / "config.yaml")
    trainer = Trainer(
        config=config,
        place=place,
        engine=engine,
        encoders=encoders,
        schedule=make_schedule(config.diffusion).to(place.device),
        state=state,
        ema=ema,
        stop=stop,
        lock=lock,
        hang=hang,
    )
    hang.renew()
    with data:
        return run(trainer, data, validate=validation)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--load",
        metavar="PATH",
        help="start from these weights (init.weights): a release of SAT or diffusers, whose codec "
        "and text encoder are taken too, a run, a file, a hub id, or `tiny`",
    )
    machine.add_options(parser)


def _with_weights(arguments: list[str]) -> list[str]:
    """The command line with `--load` written out as settings, before those of the user."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_options(parser)
    load = parser.parse_known_args(arguments)[0].load
    return [f"init.weights={load}", *frozen_beside(load), *arguments] if load else arguments


if __name__ == "__main__":
    sys.exit(main())
