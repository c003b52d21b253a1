"""`train.py --plan` beyond one machine: what it says of nodes, network, saves and failures."""

import re
from pathlib import Path

import pytest

from sat_udpdiff import train
from sat_udpdiff.config_io import load_config
from sat_udpdiff.plan.cluster import Cluster
from sat_udpdiff.plan.machine import Machine
from sat_udpdiff.plan.network import Computing, Layout, Links
from sat_udpdiff.plan.scale_report import HOW_TO_ASK
from sat_udpdiff.plan.scaling import scale, ways_of
from sat_udpdiff.plan.traffic import Exchange

ROOT = Path(__file__).parents[2]
# No codec to count, which takes seconds.
LARGE = ["--base", "configs/5b.yaml", "configs/multitask.yaml", "data.source=latents", "--plan"]
SMALL = ["--base", "configs/tiny.yaml", "configs/multitask.yaml", "data.source=latents", "--plan"]
BF16 = "train.precision=bf16"
TITLE = "nodes, network, saves and failures (* = assumed)"


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch):
    monkeypatch.chdir(ROOT)


def call(capsys, *words, base=(*SMALL, BF16)):
    status = train.main([*base, *words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def section(text):
    return text.split(TITLE)[1].split("\n\nwhat would")[0]


def test_four_nodes_on_ten_gigabits_by_hand(capsys):
    words = ("--nodes", "4", "--network", "10gbe", "--disk", "2")
    status, text, _ = call(capsys, *words, base=LARGE)
    assert status == 0
    assert text.splitlines()[0].startswith("5b on 32 x a100 (4 nodes of 8): fits")
    found = section(text)
    assert "10gbe, 10 Gbit/s of a node; 300 GB/s of a GPU within its node; 80%* of both" in found
    assert "all-reduce of 11.14 GB: gradients, bf16; beside the backward pass" in found
    assert "all-gather of 11.14 GB: weights, bf16; all wait" in found
    # 3 x 31/32, and 3 x 3/4, of 11.14 GB.
    assert "a node sends        32.38 GB in a step through flat rings, 25.07 GB" in found
    table = [line.split() for line in found.splitlines() if re.match(r" +\d+ +\d+ +\d+ ", line)]
    assert [row[:3] for row in table] == [
        ["1", "8", "8"], ["2", "16", "16"], ["4", "32", "32"], ["8", "64", "64"],
    ]  # fmt: skip
    # 9.42 s of computing; gradients take 21.58 s beside 7.20 s of backward pass, weights 10.79 s.
    assert table[2][3:7] == ["34.6", "s", "25.2", "s"]
    assert table[2][7] == "27%"
    # 10.79 GB in 5 % of 9.42 s, at 80 % of the rate.
    assert float(table[2][8]) == pytest.approx(229, abs=1)
    assert table[0][7:] == ["100%", "-"]
    # Three kinds of 22.28 GB: sums over the ring, 2.2 s each to the host, 2 GB/s to the disk.
    assert "66.85 GB: training waits 136.2 s* to gather, then goes on\n" in found
    assert "while 3 ranks write side by side for 33.4 s* on a disk of 2 GB/s;\n" in found
    assert "the save counts 169.6 s after it began\n" in found
    assert "one in 5,000 h* of a node, in 52.1 days of the job" in found
    # 136.2 s in 500 x 34.6 s; half of them, 33.4 s and 10 minutes in 1,250 h.
    assert "0.79% saves, 0.21% work" in found
    # 169.6 s in 500 x 34.6 s.
    other = "with checkpoint.asynchronous=false 1.19%: 0.98% saves, 0.21% work and restarts\n"
    assert other in found
    # The step of all sections is one.
    assert "time per step       34.6 s at 48% of 312 TFLOP/s" in text
    assert "25.2 s of it (assumed) GPUs wait for each other" in text
    assert "train.zero_stage=1 train.accumulation_steps=8 " in text.split("what would fit")[1]
    assert all(line == line.rstrip() and len(line) < 140 for line in text.splitlines())


def test_the_ways_stand_beside_each_other(capsys):
    _, text, _ = call(capsys, "--nodes", "2", "train.accumulation_steps=2", base=LARGE)
    lines = [line.strip() for line in section(text).splitlines() if line.startswith("  ZeRO")]
    names = [re.split(r"  +", line)[0] for line in lines]
    assert names == [
        "ZeRO 1", "ZeRO 2", "ZeRO 3", "ZeRO 2, sequence 2", "ZeRO 2, sequence 8",
        "ZeRO 2, tensor 2", "ZeRO 2, tensor 8",
    ]  # fmt: skip
    assert [line.endswith("<- this run") for line in lines] == [name == "ZeRO 2" for name in names]
    peak = re.search(r"peak +([\d.]+)$", text, re.MULTILINE)
    (own,) = [line for line in lines if line.endswith("<- this run")]
    assert peak is not None
    assert f" {float(peak[1]):.1f} GB  <- this run" in own
    sent = {name: line.split(" GB")[0].split()[-1] for name, line in zip(names, lines, strict=True)}
    # Gradients once or twice around twice, weights once: 15/16 of 11.14 GB each.
    assert float(sent["ZeRO 1"]) == pytest.approx(3 * 15 / 16 * 11.141, abs=0.01)
    assert float(sent["ZeRO 2"]) == pytest.approx(5 * 15 / 16 * 11.141, abs=0.01)


def test_a_shared_sample_counts_once_and_its_layout_is_this_run(capsys):
    sizes = ("parallel.sequence_size=2", "parallel.tensor_size=2")
    _, text, _ = call(capsys, "--nodes", "2", *sizes, base=LARGE)
    assert "global batch        4 = 1 x 1 accumulated x 4 groups of 4 GPUs" in text
    assert "bf16, ZeRO 2, tensor 2, sequence 2, recomputing every layer" in text
    assert "weights, bf16, 1/2 of the layers " in text
    assert "fp32 weights and moments of AdamW, 1/8 of them " in text
    found = section(text)
    assert "all-reduce of 6.38 GB: gradients, bf16, among 8 GPUs; beside the backward pass" in found
    # Two in each of three passes of 42 layers, and one; 17,776 / 2 tokens of 3072 numbers.
    assert "all-reduce of 253 x 54.61 MB: tokens of layers, among the GPUs of a sample;" in found
    assert "all-to-all of 126 x 81.91 MB: queries, keys, values, among the GPUs of a sam" in found
    lines = [line for line in found.splitlines() if line.startswith("  ZeRO")]
    (own,) = [line for line in lines if line.endswith("<- this run")]
    assert own.split()[:7] == ["ZeRO", "2,", "tensor", "2,", "sequence", "2", "4"]
    assert len(lines) == 8
    rows = [line.split() for line in found.splitlines() if re.match(r" +\d+ +\d+ +\d+ ", line)]
    assert [row[:3] for row in rows[:2]] == [["1", "8", "2"], ["2", "16", "4"]]


def test_offload_is_told_in_memory_time_and_advice(capsys):
    _, text, _ = call(capsys, "--gpus", "1", base=LARGE)
    offered = text.split("any one of these")[1]
    assert re.search(r"train\.offload=optimizer +25\.3 GB .*, its step on the CPU\n", offered)
    status, text, _ = call(capsys, "--gpus", "1", "train.offload=optimizer", base=LARGE)
    assert status == 0
    assert text.splitlines()[0].startswith("5b on 1 x a100: fits, 25.3 of 80 GB")
    assert "optimizer in host memory" in text
    # 18 bytes of each number.
    assert re.search(r"optimizer of 1 GPU \(train\.offload\) +100\.27\n", text)
    assert re.search(r"files of a checkpoint until on the disk, 3 x 22\.28 GB +66\.85\n", text)
    # 6 bytes of each number at 20 GB/s, and 42 at 150 GB/s.
    assert "3.2 s of it (assumed) AdamW on the CPU" in text


def test_sizes_that_do_not_divide_the_gpus_are_one_line(capsys):
    status, out, err = call(capsys, "--nodes", "3", "parallel.tensor_size=3", "--gpus", "12")
    assert (status, out) == (2, "")
    assert err == (
        "train.py: parallel: tensor 3 x sequence 1 = 3 GPUs of 3 nodes x 4 GPUs neither divide a "
        "node nor fill several, and such a layout is not planned; change --gpus, "
        "parallel.tensor_size or parallel.sequence_size\n"
    )
    status, out, err = call(capsys, "parallel.sequence_size=3", "--gpus", "8")
    assert (status, out) == (2, "")
    assert "tensor 1 x sequence 3 = 3 does not divide 1 node x 8 GPUs = 8;" in err


def test_without_the_options_there_is_one_line_on_how_to_ask(capsys):
    _, text, _ = call(capsys)
    assert f"\n\n{HOW_TO_ASK}\n\n" in text
    assert TITLE not in text


def test_any_option_brings_the_section_and_takes_its_mark(capsys):
    _, text, _ = call(capsys, "--mtbf-hours", "100", "--restart-minutes", "30")
    found = section(text)
    assert "one in 100 h of a node" in found
    assert "restarts of 30 min\n" in found
    assert "hdr*, 200 Gbit/s of a node" in found
    assert "a node sends" not in found


def test_an_interval_far_from_the_best_brings_advice(capsys):
    _, text, _ = call(capsys, "--mtbf-hours", "5000", "checkpoint.every_steps=20")
    best = re.search(r"saving every ([\d,]+) steps \([^)]*\), by Daly", text)
    assert best is not None
    assert f"-> checkpoint.every_steps={best[1].replace(',', '')}" in text
    _, text, _ = call(capsys, f"checkpoint.every_steps={best[1].replace(',', '')}", "--nodes", "1")
    assert "->" not in section(text)


def test_fp32_has_bytes_and_no_times(capsys):
    _, text, _ = call(capsys, "--nodes", "2", "--gpus", "2", base=SMALL)
    found = section(text)
    assert "all-reduce of 18.33 MB: gradients, fp32" in found
    assert "time lost           unknown" in found
    assert "efficiency" not in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "0"], "--nodes: expected a whole number of at least 1, got 0"),
        (["--nodes", "3", "--gpus", "8"], "--gpus: expected a multiple of --nodes 3, got 8"),
        (["--network", "hrd"], "--network: expected 10gbe, 25gbe, roce100, hdr, ndr, several as"),
        (["--network", "0xhdr"], "--network: expected 10gbe, "),
        (["--network", "-5"], "--network: expected 10gbe, "),
        (["--disk", "2GB"], "--disk: expected GB per second above 0, such as 2, got 2GB"),
        (["--mtbf-hours", "0"], "--mtbf-hours: expected hours above 0, such as 5000, got 0"),
        (["--restart-minutes", "inf"], "--restart-minutes: expected minutes above 0, such as 10"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(words, message, capsys):
    status, out, err = call(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"train.py: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("network", "gbit"), [("8xHDR", "1600"), ("ndr", "400"), ("50", "50")])
def test_networks_are_cards_or_rates(network, gbit, capsys):
    _, text, _ = call(capsys, "--network", network, "--gpus", "1")
    assert f"{gbit} Gbit/s" in section(text)
    assert "nothing: one GPU" in section(text)


def test_rows_go_beyond_the_nodes_asked_for_and_include_them():
    exchange = Exchange(
        what="x", kind="all-gather", among="zero", size=10.0, times=1, beside="nothing"
    )

    def rows(nodes, **parts):
        return scale(
            [exchange],
            computing_on=lambda layout: Computing(forward=1.0, backward=2.0, step=9.0),
            layout=Layout(nodes=nodes, gpus=1, **parts),
            links=Links(within=1.0, between=5.0),
        )

    assert [row.layout.nodes for row in rows(3)] == [1, 2, 3, 4, 8]
    assert [row.layout.nodes for row in rows(12)] == [1, 2, 4, 8, 12]
    # Fewer GPUs than share a sample are no row.
    assert [row.layout.nodes for row in rows(12, tensor=4)] == [4, 8, 12]
    one, two, *_ = rows(1)
    assert (one.step_seconds, two.waiting_seconds, two.efficiency) == (9.0, 1.0, 0.9)


def test_layers_and_sequences_are_shared_as_heads_gpus_and_stages_allow():
    links = Links(within=1e11, between=1e10)

    def ways(*overrides, nodes=1, gpus=8):
        files = [str(ROOT / "configs" / f"{name}.yaml") for name in ("2b", "multitask")]
        config = load_config(files, ["data.source=latents", *overrides])
        cluster = Cluster(
            nodes=nodes,
            network="hdr",
            network_rate=25e9,
            disk_rate=2e9,
            mtbf_seconds=1e6,
            restart_seconds=600.0,
            assumed=frozenset(),
        )
        machine = Machine(
            gpus=gpus * nodes, gpu="a100", memory=80e9, peak_flops=3e14, mfu=0.5, cluster=cluster
        )
        found = ways_of(config, machine=machine, links=links, rate=1e14)
        return [
            (way.zero_stage, way.parallel.tensor_size, way.parallel.sequence_size, way.batch)
            for way in found
        ]

    # 30 heads.
    plain = [(1, 1, 1, 8), (2, 1, 1, 8), (3, 1, 1, 8)]
    assert ways() == [*plain, (2, 1, 2, 4), (2, 2, 1, 4)]
    # Stage 3 and tensor parallel do not go together.
    assert ways("train.zero_stage=3") == [*plain, (3, 1, 2, 4)]
    assert ways(nodes=2, gpus=1) == [(1, 1, 1, 2), (2, 1, 1, 2), (3, 1, 1, 2)]
    own = ways("parallel.sequence_size=2", nodes=2, gpus=1)
    assert own == [(1, 1, 1, 2), (2, 1, 1, 2), (3, 1, 1, 2), (2, 1, 2, 1)]
