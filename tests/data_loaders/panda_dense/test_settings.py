"""Settings of the pipeline: its files, its errors, and what is kept of them."""

import re
from pathlib import Path

import pytest
import yaml

from data_loaders.panda_dense import settings
from data_loaders.panda_dense.commands import main
from data_loaders.panda_dense.plan import plan
from data_loaders.panda_dense.settings import PandaConfig
from sat_udpdiff.config import ConfigError
from sat_udpdiff.config_help import setting_docs
from sat_udpdiff.config_sources import setting_types

CONFIGS = Path(__file__).parents[3] / "configs" / "panda_dense"
NAMES = (
    "classical", "depth_anything_v2", "paper", "point_grid_12x12", "point_grid_8x8", "qwen3_vl",
    "synthetic",
)  # fmt: skip


def load(*names: str) -> PandaConfig:
    return settings.load([str(CONFIGS / f"{name}.yaml") for name in names])


def test_no_file_is_forgotten() -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_opens_with_its_promise_and_names_settings_that_exist(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    head = re.match(r"(#.*\n)+", text)
    assert head is not None
    assert re.match(r"# (Data set|Ablation): ", head[0])
    for promise in ("Hardware", "Hours", "Expect", "Command"):
        assert f"\n# {promise}: " in head[0], promise
    assert max(map(len, text.splitlines())) <= 100
    assert load(name) != PandaConfig()


def test_every_setting_says_what_it_means() -> None:
    silent = setting_types(PandaConfig).keys() - setting_docs(PandaConfig).keys()
    assert not silent


def test_all_values_come_back(tmp_path: Path) -> None:
    config = settings.load(
        [str(CONFIGS / "paper.yaml")], ["select.thresholds.min_motion=null", "clip.fps=24"]
    )
    (tmp_path / "config.yaml").write_text(settings.dump(config))
    assert settings.load([str(tmp_path / "config.yaml")]) == config
    assert yaml.safe_load(settings.dump(config))["clip"]["fps"] == 24.0


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("depth.methd=x", "depth.methd: no such setting (nearest: depth.method)"),
        ("depth.method=midas", "depth.method: expected one of depthcrafter, depth_anything"),
        ("segment.entityseg.min_score=high", "segment.entityseg.min_score: expected a number"),
        ("segment.entityseg=x", "segment.entityseg: expected a section"),
        ("nothing", "expected key=value"),
    ],
)
def test_wrong_words_are_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        settings.load([], [word])


@pytest.mark.parametrize("name", NAMES)
def test_every_file_can_be_planned(name: str) -> None:
    names = ["paper", name] if name in ("qwen3_vl", "depth_anything_v2") else [name]
    lines = list(plan(load(*names), clips=1000, gpus=8, tasks=64))
    assert lines[0].startswith("1,000 clips of ")
    assert next(line for line in lines if line.startswith("total"))


def test_help_lists_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help-config"])
    printed = capsys.readouterr().out
    assert "propagate.sam2: " in printed and "select.thresholds.max_cuts = 0" in printed
