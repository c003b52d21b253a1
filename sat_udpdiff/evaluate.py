r"""Judge videos as the paper does: scores, a table beside the paper's, plots, a page with samples.

    python sat_udpdiff/evaluate.py --samples SAMPLES --reference OUT/heldout --output SCORES
    python sat_udpdiff/evaluate.py --load RUN --config configs/evaluation/tiny.yaml --output SCORES

--samples takes folders of sample.py, single samples, or folders of mp4 files, a row of the table
each. --load samples the held-out prompts first, once for each task of the network, with fixed
seeds. Started by torchrun, deepspeed or srun the processes share the work; to go on after an
interruption, run the same command again.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_loaders.atomic_file import write_atomically
from data_loaders.order import ClipSize
from sat_udpdiff.config import Config, Task
from sat_udpdiff.config_io import add_help_config, load_config, to_values
from sat_udpdiff.config_sources import files_and_words
from sat_udpdiff.distributed import Place, close_distributed, find_place, init_distributed
from sat_udpdiff.evaluation.cache import FeatureCache
from sat_udpdiff.evaluation.choose import Around, choose_measures, make_measures
from sat_udpdiff.evaluation.inputs import check_counts, clip_fit, find_prompts, find_references
from sat_udpdiff.evaluation.machine import machine_facts
from sat_udpdiff.evaluation.measure import Fact, Measure, Video
from sat_udpdiff.evaluation.references import ClipFit
from sat_udpdiff.evaluation.report import write_report
from sat_udpdiff.evaluation.results import write_results
from sat_udpdiff.evaluation.run import NO_MAP, Evaluation, check_any, evaluate
from sat_udpdiff.evaluation.settings import EvaluationConfig, dump, load
from sat_udpdiff.evaluation.tables import markdown
from sat_udpdiff.evaluation.timing import SamplingTime, time_sampling, timing_table
from sat_udpdiff.evaluation.vbench_files import DIMENSIONS, JudgedVideo, write_vbench_files
from sat_udpdiff.evaluation.videos import (
    Found,
    common_origin,
    find_videos,
    open_samples,
    settings_of,
)
from sat_udpdiff.held_out_samples import make_samples, missing, plan_samples, refuse_others
from sat_udpdiff.loading import Model, settings_beside
from sat_udpdiff.sample import Job
from sat_udpdiff.weights.find import find_weights, is_on_hub

SAMPLES, FEATURES, SETTINGS = "samples", "features", "evaluation.yaml"
RESULTS, TABLE, TIMES, VBENCH = "results.json", "table.md", "times.md", "vbench"
"""Names in the output."""
_MINUTES_OF_WAITING = 24.0 * 60
"""For the process that samples longest."""
_SEVERAL: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSet:
    """One row of the table, before it is judged."""

    name: str
    fit: ClipFit | None
    """Size of its videos, to which the references are brought."""
    folder: Path
    network: Config | None = None
    """Of the network that is sampled; None for videos that are there."""
    jobs: Sequence[Job] = field(default_factory=list)
    """Samples that are to be there."""

    def videos(self) -> Found:
        """What is to be judged; of a network its own samples, whatever else lies there."""
        if self.network is None:
            return find_videos(self.folder)
        return open_samples(folder for job in self.jobs for folder in job.folders)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status (2 = the request cannot be met, in one line)."""
    options = parse(argv)
    try:
        config = read_settings(options)
        sets = find_sets(options, config=config)
        if options.dry_run:
            return show_plan(sets, options=options, config=config)
        return run(sets, options=options, config=config)
    except ValueError as error:
        # They name the measure and the video.
        notes = getattr(error, "__notes__", [])
        print("; ".join([f"evaluate.py: {error}", *notes]), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; to go on, run the same command again", file=sys.stderr)
        return 130


def run(sets: Sequence[VideoSet], *, options: argparse.Namespace, config: EvaluationConfig) -> int:
    """Everything, from videos or a network to the page."""
    device = None if config.run.device == "auto" else config.run.device
    place = find_place(device=device)[0]
    # All that can be missing is missed before anything takes time.
    measures = make_measures(config, around=_around(options, config=config, place=place))
    references = {one.name: find_references(config.reference, fit=one.fit) for one in sets}
    for one in sets:
        if one.network is not None:
            _check_counts(one, references=references[one.name], measures=measures)
    times = sample(sets[0], options=options, device=device) if options.load is not None else {}
    evaluations, videos = [], {}
    for one in sets:
        found = one.videos()
        videos[one.name] = {video.name: video for video in found.videos}
        evaluation = judge(one.name, found, measures=measures, references=references[one.name],
                           cache=_cache(options, config=config), place=place)  # fmt: skip
        if evaluation is not None:
            evaluations.append(with_times(evaluation, times if one is sets[0] else {}))
    if place.is_main:
        write(evaluations, videos=videos, config=config, output=options.output)
    return 0


def sample(
    one: VideoSet, *, options: argparse.Namespace, device: str | None
) -> dict[str, SamplingTime]:
    """Make the samples of a network that are not there, each process its share.

    Returns:
        With --time, on the first process: by name of the group.
    """
    times: dict[str, SamplingTime] = {}
    assert one.network is not None
    place = init_distributed(device=device, timeout_minutes=_MINUTES_OF_WAITING)
    try:
        model = Model.load(options.load, config=one.network, ema=options.ema, device=place.device)
        make_samples(one.jobs, model=model, place=place)
        if options.time and place.is_main:
            times = show_times(one, model=model, output=options.output)
        # All samples are judged together.
        dist.barrier()
    finally:
        close_distributed()
    return times


def show_times(one: VideoSet, *, model: Model, output: Path) -> dict[str, SamplingTime]:
    """Seconds of a sample by stage, for the first prompt with every task; a file and the screen."""
    times: dict[str, SamplingTime] = {}
    for job in one.jobs:
        request = replace(job.request, seeds=job.request.seeds[:1])
        group = request.task or NO_MAP
        if group not in times:
            times[group] = time_sampling(
                model.network, request, encoders=model.encoders, config=model.config
            )
    table = timing_table({f"{one.name}, {group}": time for group, time in times.items()})
    write_atomically(output / TIMES, table.encode())
    print(table)
    return times


def with_times(evaluation: Evaluation, times: Mapping[str, SamplingTime]) -> Evaluation:
    """The evaluation with the score `seconds` in each group that was timed."""
    groups = tuple(
        replace(group, scores=(*group.scores, times[group.name].score))
        if group.name in times
        else group
        for group in evaluation.groups
    )
    return replace(evaluation, groups=groups)


def judge(  # noqa: PLR0913 - one row and all that it is judged with
    name: str,
    found: Found,
    *,
    measures: Sequence[Measure],
    references: Found,
    cache: FeatureCache,
    place: Place,
) -> Evaluation | None:
    """The evaluation of one set; None on other processes than the first."""
    facts: dict[str, Fact] = {**common_origin(found.videos), **machine_facts(place.device)}
    evaluation = evaluate(
        found.videos,
        name=name,
        measures=measures,
        cache=cache,
        place=place,
        references=references.videos,
        left_out=found.left_out,
        facts=facts,
    )
    if evaluation is None or not references.left_out:
        return evaluation
    exclusions = {**evaluation.reference_exclusions, "all": references.left_out}
    return replace(evaluation, reference_exclusions=exclusions)


def write(
    evaluations: Sequence[Evaluation],
    *,
    videos: Mapping[str, Mapping[str, Video]],
    config: EvaluationConfig,
    output: Path,
) -> None:
    """Numbers, table, plots and page, and the table on the screen."""
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / SETTINGS, dump(config).encode())
    write_results(evaluations, output / RESULTS)
    for evaluation in evaluations:
        write_for_vbench(evaluation, videos=videos[evaluation.name], folder=output / VBENCH)
    table = markdown(evaluations)
    write_atomically(output / TABLE, table.encode())
    print(f"{table}\ndrawing plots, and a page with samples", flush=True)
    page = write_report(evaluations, videos=videos, folder=output, shown=config.run.shown)
    print(f"Look at {page}")


def write_for_vbench(evaluation: Evaluation, *, videos: Mapping[str, Video], folder: Path) -> None:
    """The files that VBench would have written, where there are scores of its own."""
    for group in evaluation.groups:
        if any(score.name in DIMENSIONS for score in group.scores):
            judged = {
                name: JudgedVideo(path=str(videos[name].path or name), prompt=videos[name].prompt)
                for name in group.videos
            }
            folder.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]+", "_", f"{evaluation.name}_{group.name}")
            write_vbench_files(folder, name=name, scores=group.scores, videos=judged)


def find_sets(options: argparse.Namespace, *, config: EvaluationConfig) -> list[VideoSet]:
    """The rows of the table: the network that is sampled first, then folders.

    Raises:
        ValueError: Nothing to judge, or it is not there.
    """
    if options.output is None:
        raise ValueError("--output: expected a folder, got nothing")
    if not options.samples and options.load is None:
        raise ValueError("--samples or --load: expected videos, or a network to sample")
    if options.time and options.load is None:
        raise ValueError("--time: expected a network to time, got no --load")
    sets = [] if options.load is None else [_network_set(options, config=config)]
    sets += [_folder_set(folder) for folder in options.samples]
    names = [one.name for one in sets]
    if len(set(names)) < len(names):
        # Folders of one name in different places; a network keeps its name.
        sets = [one if one.network else replace(one, name=str(one.folder)) for one in sets]
    name, count = Counter(one.name for one in sets).most_common(1)[0]
    if count > 1:
        raise ValueError(f"--samples, --name: expected rows of different names, got {name!r} twice")
    return sets


def _check_counts(one: VideoSet, *, references: Found, measures: Sequence[Measure]) -> None:
    tasks: list[Task | None] = [job.request.task for job in one.jobs]
    check_counts(tasks, references=len(references.videos), measures=measures)


def _folder_set(folder: Path) -> VideoSet:
    found = find_videos(folder)
    # Before another set is judged, whose scores would be lost.
    check_any(found.videos, name=str(folder), left_out=found.left_out)
    return VideoSet(name=folder.name, folder=folder, fit=clip_fit(found))


def _network_set(options: argparse.Namespace, *, config: EvaluationConfig) -> VideoSet:
    own, brought = settings_beside(options.load, names_base=bool(options.base))
    steps = config.sample.num_steps
    chosen = [] if steps is None else [f"sample.num_steps={steps}"]
    network = load_config([*own, *options.base], [*brought, *options.network, *chosen])
    if not is_on_hub(options.load):
        find_weights(options.load, ema=options.ema)
    data = network.data
    size = ClipSize(num_frames=data.num_frames, height=data.height, width=data.width)
    fit = ClipFit(size=size, fps=data.fps)
    prompts = find_prompts(config, fit=fit)
    folder = options.output / SAMPLES
    jobs = plan_samples(
        prompts,
        config=network,
        seed=config.sample.seed,
        folder=folder,
        tasks=config.sample.tasks,
    )
    name = options.name or Path(options.load).name
    return VideoSet(name=name, folder=folder, fit=fit, network=network, jobs=jobs)


def show_plan(
    sets: Sequence[VideoSet], *, options: argparse.Namespace, config: EvaluationConfig
) -> int:
    """What would be done, and what is missing for it; 2 where something is."""
    device = None if config.run.device == "auto" else config.run.device
    around = _around(options, config=config, place=find_place(device=device)[0])
    chosen = choose_measures(config, around=around)
    print(dump(config))
    for one in sets:
        references = find_references(config.reference, fit=one.fit)
        print(f"{one.name}: {len(references.videos)} reference clips")
        if one.network is not None:
            print(f"  {len(one.jobs)} samples in {one.folder}, {len(missing(one.jobs))} to be made")
            _check_counts(one, references=references, measures=chosen.measures)
            wanted = settings_of(to_values(one.network))
            for job in one.jobs:
                refuse_others(job, wanted=wanted)
            continue
        found = one.videos()
        print(f"  {len(found.videos)} videos in {one.folder}")
        for name, reason in found.left_out.items():
            print(f"  left out: {name}: {reason}")
    for name in config.measures:
        print(f"measure {name}: {chosen.missing.get(name, 'ready')}")
    print(f"features: {_cache(options, config=config).folder}\nresults: {options.output}")
    return 2 if chosen.missing else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; `overrides` are all words `key=value`, wherever they stand."""
    options = _parser().parse_intermixed_args(argv)
    words = []
    for name in ("samples", "base", "config"):
        files, behind = files_and_words(getattr(options, name))
        setattr(options, name, files)
        words += behind
    options.overrides = [*words, *options.overrides]
    options.samples = [Path(folder) for folder in options.samples]
    return options


def read_settings(options: argparse.Namespace) -> EvaluationConfig:
    """The settings of files and words.

    Raises:
        ConfigError: One is wrong.
    """
    words = list(options.overrides)
    if options.reference is not None:
        words += ["reference.source=shards", f"reference.shards={options.reference}"]
    return load(options.config, words)


def _cache(options: argparse.Namespace, *, config: EvaluationConfig) -> FeatureCache:
    named = Path(config.run.cache).expanduser() if config.run.cache else None
    return FeatureCache(folder=named or options.output / FEATURES)


def _around(options: argparse.Namespace, *, config: EvaluationConfig, place: Place) -> Around:
    return Around(device=place.device, cache=_cache(options, config=config).folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--samples", **_SEVERAL, metavar="FOLDER", help="samples of sample.py, or mp4 files")
    add("--load", metavar="PATH", help="network to sample: run, checkpoint, weights file, `tiny`")
    add("--base", **_SEVERAL, metavar="FILE", help="value files of the network, upon its own")
    add("--network", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the network, such as sample.sampler=ddim")  # fmt: skip
    add("--ema", action="store_true", help="take the averaged weights")
    add("--name", help="of the network's row; default: the last part of --load")
    add("--time", action="store_true", help="time sampling by stage, as well (with --load)")
    add("--reference", metavar="SHARDS", help="real clips: reference.shards")
    add("--output", type=Path, metavar="FOLDER", help="results; with --load the samples, too")
    add(
        "--config", **_SEVERAL, metavar="FILE", help="value files of the evaluation; later ones win"
    )
    add("overrides", nargs="*", metavar="KEY=VALUE", help="such as prompts.count=64")
    add("--dry-run", action="store_true", help="say what would be done and what is missing")
    add_help_config(parser, cls=EvaluationConfig)
    # The deepspeed launcher passes it; the rank itself is read from the environment.
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
