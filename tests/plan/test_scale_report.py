"""`train.py --plan` beyond one machine: what it says of nodes, network, saves and failures."""

import re
from pathlib import Path

import pytest

from sat_udpdiff import train
from sat_udpdiff.config_io import load_config
from sat_udpdiff.plan.network import Computing, Layout, Links
from sat_udpdiff.plan.scale_report import HOW_TO_ASK
from sat_udpdiff.plan.scaling import other_ways, scale
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
    assert text.splitlines()[0].startswith("5b on 32 x a100: fits")
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
    assert "66.85 GB in 169.6 s, for which training waits: 136.2 s* to gather" in found
    assert "33.4 s* to write, 3 ranks side by side, on a disk of 2 GB/s\n" in found
    assert "one in 5,000 h* of a node, in 52.1 days of the job" in found
    # 169.6 s in 500 x 34.6 s; half of them and 10 minutes in 1,250 h.
    assert "0.98% saves, 0.21% work" in found
    assert all(line == line.rstrip() and len(line) < 140 for line in text.splitlines())


def test_the_ways_stand_beside_each_other(capsys):
    _, text, _ = call(capsys, "--nodes", "2", "train.accumulation_steps=2", base=LARGE)
    lines = [line.strip() for line in section(text).splitlines() if line.startswith("  ZeRO")]
    names = [re.split(r"  +", line)[0] for line in lines]
    assert names == [
        "ZeRO 1", "ZeRO 2", "ZeRO 3", "ZeRO 2, tensor 2", "ZeRO 2, tensor 8",
        "ZeRO 2, sequence 2", "ZeRO 2, sequence 8",
    ]  # fmt: skip
    assert [line.endswith("<- this run") for line in lines] == [name == "ZeRO 2" for name in names]
    sent = {name: line.split(" GB")[0].split()[-1] for name, line in zip(names, lines, strict=True)}
    # Gradients once or twice around twice, weights once: 15/16 of 11.14 GB each.
    assert float(sent["ZeRO 1"]) == pytest.approx(3 * 15 / 16 * 11.141, abs=0.01)
    assert float(sent["ZeRO 2"]) == pytest.approx(5 * 15 / 16 * 11.141, abs=0.01)


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
    assert "all-reduce of 0.02 GB: gradients, fp32" in found
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

    def rows(nodes):
        return scale(
            [exchange],
            computing=Computing(forward=1.0, backward=2.0, step=9.0),
            layout=Layout(nodes=nodes, gpus=1),
            links=Links(within=1.0, between=5.0),
        )

    assert [row.layout.nodes for row in rows(3)] == [1, 2, 3, 4, 8]
    assert [row.layout.nodes for row in rows(12)] == [1, 2, 4, 8, 12]
    one, two, *_ = rows(1)
    assert (one.step_seconds, two.waiting_seconds, two.efficiency) == (9.0, 1.0, 0.9)


def test_layers_and_sequences_are_split_as_heads_and_gpus_allow():
    files = [str(ROOT / "configs" / f"{name}.yaml") for name in ("2b", "multitask")]
    config = load_config(files, ["data.source=latents"])
    links = Links(within=1e11, between=1e10)
    ways = other_ways(config, layout=Layout(nodes=1, gpus=8), links=links, rate=1e14)
    # 30 heads.
    assert [(way.tensor, way.sequence) for way in ways[3:]] == [(2, 1), (1, 2)]
    assert [way.batch for way in ways] == [8, 8, 8, 4, 4]
    alone = other_ways(config, layout=Layout(nodes=2, gpus=1), links=links, rate=1e14)
    assert [(way.zero_stage, way.tensor) for way in alone] == [(1, 1), (2, 1), (3, 1)]
