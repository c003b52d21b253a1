"""What `--plan` prints: whether a run fits, what it takes, and what to change."""

from __future__ import annotations

from collections.abc import Sequence

from sat_udpdiff.config import Config, global_batch
from sat_udpdiff.config_io import notes
from sat_udpdiff.plan.advice import Outcome, examine, uses_of_room, ways_to_fit
from sat_udpdiff.plan.machine import Machine, Situation
from sat_udpdiff.plan.scale_report import cluster_section
from sat_udpdiff.plan.scaling import layout_of
from sat_udpdiff.plan.sizes import Sizes, count_kinds, derive_sizes
from sat_udpdiff.plan.survival import files_on_a_node
from sat_udpdiff.plan.tables import (
    RECOMPUTED_LAYERS,
    days,
    describe_checkpoint,
    describe_run,
    flops,
    flops_unit,
    gigabytes,
    rows,
    seconds,
    size_of,
)
from sat_udpdiff.plan.work import Work, count_work
from sat_udpdiff.training.throughput import GPUS

_NAME_WIDTH = 20
_CHANGE_WIDTH = 46
_MEMORY_WIDTH = 58
# A row of less is not worth a line.
_LEAST_SHOWN = 0.005e9
_LEAST_WAIT = 0.01


def plan_report(config: Config, *, machine: Machine) -> tuple[str, bool]:
    """The text of `--plan`, and whether the run fits.

    Raises:
        ConfigError: `parallel` does not go with the GPUs; has all numbers.
        DataError: The manifest of shards or latents that are there cannot be read.
        ValueError: The codec does not fit the configuration.
    """
    situation = Situation(config=config, machine=machine)
    outcome, sizes, work = examine(situation), derive_sizes(config), count_work(config)
    parts = [
        _verdict(outcome),
        _section("the run", _run_rows(config, sizes=sizes, machine=machine)),
        f"memory of each GPU, GB of 10^9 bytes\n{_memory_table(outcome)}",
        _host_table(outcome, sizes=sizes),
        _section("work and time", _work_rows(outcome, work=work, sizes=sizes)),
        cluster_section(config, machine=machine, sizes=sizes, work=work),
        _advice(outcome),
        _section("not in these figures", [(line, "") for line in _caveats(outcome)]),
    ]
    parts += ["\n".join(f"note: {note}" for note in notes(config))] if notes(config) else []
    return "\n\n".join(parts) + "\n", outcome.fits


def _verdict(outcome: Outcome) -> str:
    machine, config = outcome.situation.machine, outcome.situation.config
    room = machine.memory - outcome.memory.total
    where = f"{config.model.family} on {machine.gpus} x {machine.gpu}"
    if machine.cluster is not None and machine.cluster.nodes > 1:
        nodes = machine.cluster.nodes  # as --gpus counts those of all together
        where += f" ({nodes} nodes of {machine.gpus // nodes})"
    peak = f"{outcome.memory.total / 1e9:.1f} of {machine.memory / 1e9:g} GB"
    if outcome.fits:
        return f"{where}: fits, {peak} per GPU, {room / 1e9:.1f} GB to spare"
    return f"{where}: DOES NOT FIT, {peak} per GPU, {-room / 1e9:.1f} GB too much"


def _section(title: str, pairs: Sequence[tuple[str, str]]) -> str:
    return f"{title}\n{rows(pairs, width=_NAME_WIDTH, indent='  ')}"


def _run_rows(config: Config, *, sizes: Sizes, machine: Machine) -> list[tuple[str, str]]:
    data, train = config.data, config.train
    sources = {
        "video": "decoded, encoded by codec and text encoder while training",
        "latents": "from cached latents, no encoder in the loop",
    }
    clips = data.buckets or (f"{data.num_frames}x{data.height}x{data.width}",)
    # Sizes are of the largest bucket; work and time are means.
    largest = ", figures of memory for the largest" if len(clips) > 1 else ""
    return [
        ("clips", f"{', '.join(clips)} at {data.fps:g} fps, {sources[data.source]}{largest}"),
        *describe_run(config, sizes=sizes, gpus=machine.gpus, processes="GPUs"),
        ("training", f"{train.precision}, ZeRO {train.zero_stage}, {_layout_words(config)}"
                     f"recomputing {RECOMPUTED_LAYERS[config.model.activation_checkpointing]}"),
    ]  # fmt: skip


def _layout_words(config: Config) -> str:
    """What is unlike a GPU for each sample and all of it in the GPU's memory."""
    parallel, offload = config.parallel, config.train.offload
    words = f"tensor {parallel.tensor_size}, " if parallel.tensor_size > 1 else ""
    words += f"sequence {parallel.sequence_size}, " if parallel.sequence_size > 1 else ""
    far = {"none": "", "optimizer": "optimizer", "weights": "optimizer and weights"}[offload]
    return f"{words}{far} in host memory, " if far else words


def _host_table(outcome: Outcome, *, sizes: Sizes) -> str:
    """What a run takes of the memory of a node's host; loaders and the system come on top."""
    config, machine = outcome.situation.config, outcome.situation.machine
    layout, is_asynchronous = layout_of(config, machine=machine), config.checkpoint.asynchronous
    files = files_on_a_node(
        kinds=count_kinds(config),
        ranks=layout.world_size,
        gpus=layout.gpus,
        asynchronous=is_asynchronous,
    )
    size = float(sizes.network_bytes)
    each = f"{files} x {size_of(size)}"
    when = "until on the disk" if is_asynchronous else "while written"
    lines = [
        _memory_row(f"files of a checkpoint {when}, {each}", files * size),
        _memory_row(_far_label(config, layout.gpus), layout.gpus * outcome.memory.host),
    ]
    most = "host memory of the first node, which has most of it" if layout.nodes > 1 else (
        "host memory of a node"
    )  # fmt: skip
    return "\n".join([f"{most}, GB of 10^9 bytes", *(line for line in lines if line is not None)])


def _far_label(config: Config, gpus: int) -> str:
    what = "optimizer and weights" if config.train.offload == "weights" else "optimizer"
    return f"{what} of {gpus} GPU{'s' * (gpus > 1)} (train.offload)"


def _memory_table(outcome: Outcome) -> str:
    """What is held, then each phase with its parts; the largest phase is marked."""
    memory = outcome.memory
    phases = memory.phases
    largest = max(phases, key=lambda name: phases[name])
    lines = [_memory_row(label, value) for label, value in _held(outcome)]
    lines += [_memory_row("held from the first step to the last", memory.held), ""]
    lines += ["  on top of that, one after the other"]
    for name, label in _phase_labels(outcome).items():
        mark = "  <- the peak" if name == largest else ""
        lines.append(_memory_row(label, phases[name], mark=mark))
        if name == "passes":
            lines += [
                _memory_row(f"    {part}", value) for part, value in _parts_of_passes(outcome)
            ]
    lines.append(_memory_row("peak", memory.total))
    return "\n".join(line for line in lines if line is not None)


def _memory_row(label: str, value: float, *, mark: str = "") -> str | None:
    """A line of the table; None where there is nothing to show."""
    if value < _LEAST_SHOWN and not mark:
        return None
    return f"  {label:<{_MEMORY_WIDTH}}{gigabytes(value)}{mark}"


def _held(outcome: Outcome) -> list[tuple[str, float]]:
    memory, config = outcome.memory, outcome.situation.config
    share = _share(outcome)
    return [
        (
            f"weights, {config.train.precision}{_cut(config)}"
            f"{share if _zero(outcome) == 3 else ''}",
            memory.weights,
        ),
        (f"fp32 weights and moments of AdamW{share}", memory.optimizer),
        (f"average of the weights (EMA), fp32{share}", memory.ema),
        (f"text encoder, {config.text.dtype}", memory.text_encoder),
        (f"video codec, {config.codec.dtype}", memory.codec),
        ("CUDA, its libraries, fragmentation: an allowance", memory.overhead),
    ]


def _parts_of_passes(outcome: Outcome) -> list[tuple[str, float]]:
    memory, config = outcome.memory, outcome.situation.config
    layers = RECOMPUTED_LAYERS[config.model.activation_checkpointing]
    sequence = config.parallel.sequence_size
    tokens = f", 1/{sequence} of the tokens" if sequence > 1 else ""
    return [
        (f"activations{tokens}, recomputing {layers}", memory.activations),
        (f"gradients{_share(outcome) if _zero(outcome) > 1 else ''}", memory.gradients),
        ("buckets of gradients on their way", memory.buckets),
        ("weights gathered for the layers at work", memory.gathered),
    ]


def _zero(outcome: Outcome) -> int:
    return outcome.situation.config.train.zero_stage


def _share(outcome: Outcome) -> str:
    config, gpus = outcome.situation.config, outcome.situation.machine.gpus
    ranks = gpus // config.parallel.tensor_size
    return f", 1/{ranks} of them" if ranks > 1 else ""


def _cut(config: Config) -> str:
    tensor = config.parallel.tensor_size
    return f", 1/{tensor} of the layers" if tensor > 1 else ""


def _phase_labels(outcome: Outcome) -> dict[str, str]:
    config = outcome.situation.config
    clips = config.train.micro_batch_size * (1 + config.model.dense_groups)
    ways = [
        *(["one by one" if config.codec.slicing else "together"] if clips > 1 else []),
        *(["in tiles"] if config.codec.tiling else []),
        *(["in chunks"] if config.codec.encode_chunks == "diffusers" else []),
    ]
    what = f"{clips} clips" if clips > 1 else "a clip"
    return {
        "start": "start: a second copy of the weights",
        "encoding": ", ".join([f"encoding {what}", *ways]),
        "passes": "forward and backward pass",
        "step": "optimizer step: gradients and their fp32 copies",
        "sampling": "sample videos: sampling, then decoding",
    }


def _work_rows(outcome: Outcome, *, work: Work, sizes: Sizes) -> list[tuple[str, str]]:
    config, machine = outcome.situation.config, outcome.situation.machine
    train, duration = config.train, outcome.duration
    batch = global_batch(config, processes=machine.gpus)
    pairs = [
        ("one sample", flops(work.total)),
        ("", _parts_of(work)),
        ("one step", f"{flops(work.total * batch)} on all GPUs"),
    ]
    if duration is None:
        pairs.append(("time", "unknown: the tables hold what GPUs do at 16 bits, not in fp32"))
    else:
        peak = f"{machine.mfu:.0%} of {machine.peak_flops / 1e12:,.0f} TFLOP/s"
        pairs += [
            ("time per step", f"{seconds(duration.step_seconds)} at {peak} "
                              f"(metrics.jsonl: mfu {duration.mfu:.2f})"),
            *_beside_rows(outcome),
            (f"{train.steps:,} steps", days(duration.days)),
        ]  # fmt: skip
    pairs.append(("checkpoint", describe_checkpoint(config, sizes=sizes)))
    return pairs


def _beside_rows(outcome: Outcome) -> list[tuple[str, str]]:
    """What of a step is not computing."""
    beside, pairs = outcome.beside, []
    if beside and beside.offload:
        what = "AdamW on the CPU and what moves between GPU and host"
        pairs.append(("", f"{seconds(beside.offload)} of it (assumed) {what}"))
    if beside and beside.waiting >= _LEAST_WAIT:
        pairs.append(("", f"{seconds(beside.waiting)} of it (assumed) GPUs wait for each other"))
    return pairs


def _parts_of(work: Work) -> str:
    parts = {
        "forward": work.forward,
        "backward": work.backward,
        "recomputed layers": work.recomputed,
        "attention scores again": work.attention,
        "encoders": work.encoding,
    }
    unit = flops_unit(min(value for value in parts.values() if value))
    sums = [f"{name} {value / unit.size:,.1f}" for name, value in parts.items() if value]
    return f"= {' + '.join(sums)} {unit.name}"


def _advice(outcome: Outcome) -> str:
    if outcome.fits:
        found = uses_of_room(outcome)
        title = "nothing else that this program knows fits"
        if found:
            title = "what would fit as well; in brackets the GPU time per sample"
        return "\n".join([title, *_advice_lines(outcome, found)])
    found = ways_to_fit(outcome)
    if not found:
        return (
            "no setting known to this program makes it fit, nor do all of them together: it takes "
            "a smaller clip (data.num_frames, data.height, data.width), a smaller family, or GPUs "
            "with more memory"
        )
    if len(found[0].change) > 1:
        title = "no single change is enough; together these are"
        first, *others = (_advice_lines(outcome, [way]) for way in found)
        lines = [title, *first, *(line for way in others for line in ("or these", *way))]
        return "\n".join([*lines, *_larger_gpus(outcome)])
    if len(found) == 1:
        title = "this makes it fit"
    else:
        title = (
            "any one of these makes it fit, the cheapest first; in brackets the GPU time per sample"
        )
    return "\n".join([title, *_advice_lines(outcome, found), *_larger_gpus(outcome)])


def _larger_gpus(outcome: Outcome) -> list[str]:
    """The types of GPU that would hold the run as it is."""
    needed = outcome.memory.total
    names = [name for name, gpu in GPUS.items() if gpu.memory_gb * 1e9 >= needed]
    return [f"  or GPUs of {needed / 1e9:.0f} GB and more: {', '.join(names)}"] if names else []


def _advice_lines(current: Outcome, found: Sequence[Outcome]) -> list[str]:
    lines = []
    for outcome in found:
        changes = outcome.change
        lines += [
            f"  {change.text:<{_CHANGE_WIDTH}}{change.price}".rstrip() for change in changes[:-1]
        ]
        last = changes[-1]
        text = f"  {last.text:<{_CHANGE_WIDTH}}{outcome.memory.total / 1e9:>6.1f} GB"
        lines.append(f"{text}{_time_cell(current, outcome)}  {last.price}".rstrip())
    return lines


def _time_cell(current: Outcome, outcome: Outcome) -> str:
    """Time per step, and its change per sample and GPU; where no time is known that of the work."""
    relative = outcome.cost / current.cost - 1
    change = f"{relative:+.0%}" if abs(relative) >= 0.005 else "same"
    if outcome.duration is None:
        return f"{change + ' work':>12}"
    return f"{seconds(outcome.duration.step_seconds):>9} per step ({change})"


def _caveats(outcome: Outcome) -> list[str]:
    config = outcome.situation.config
    lines = ["waiting for data, checkpoints and sample videos; the file system"]
    if config.data.source == "video":
        lines.append("workspace that cuDNN takes for the codec's convolutions")
    if config.data.decoder == "dali":
        lines.append("frames that DALI decodes on the GPU")
    if config.train.offload != "none":
        lines.append("AdamW on the CPU with few threads: torchrun sets OMP_NUM_THREADS=1")
    if outcome.situation.machine.cluster is not None:
        lines.append("latency, and other jobs on the network")
    return lines
