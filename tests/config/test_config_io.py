"""Values, precedence, round trip and the command line."""

import dataclasses
import os
import typing

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sat_udpdiff.config import Config
from sat_udpdiff.config_help import describe_settings, setting_docs
from sat_udpdiff.config_io import load_config, notes, parse_cli, save_config, setting_types


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_are_valid():
    assert load_config([]) == Config()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.lr=1e-5", 1e-5),  # text to YAML 1.1
        ("optimizer.lr=3", 3.0),
        ("optimizer.lr=.5", 0.5),
        ("optimizer.betas=[0.5, 1e-1]", (0.5, 0.1)),
        ("train.steps=1_000", 1000),
        ("train.steps=0100", 100),  # octal to YAML 1.1
        ("log.wandb=off", "off"),  # False to YAML 1.1
        ("train.zero_stage=1", 1),
        ("ema.enabled=yes", True),
        ("ema.enabled=False", False),
        ("init.weights=null", None),
        ("init.weights=~/base", "~/base"),
        ("codec.subfolder=null", None),
        ("validation.prompts=[a disc moves left, 'two: squares']", None),
        ("run.output=2024", "2024"),
        ("run.output=a: b #c", "a: b #c"),
        ("run.output=@x", "@x"),
        ("run.output='quoted'", "quoted"),
        ("run.output=a=b", "a=b"),
        ("run.output=", ""),
        ("seed=9223372036854775807", 2**63 - 1),
    ],
)
def test_the_type_of_the_field_reads_the_text(override, value):
    key = override.partition("=")[0]
    config = load_config([], [override])
    found = config
    for name in key.split("."):
        found = getattr(found, name)
    expected = ("a disc moves left", "two: squares") if key == "validation.prompts" else value
    assert found == expected
    assert type(found) is type(expected)


def test_files_read_like_the_command_line(tmp_path):
    text = "log:\n  wandb: off\noptimizer:\n  lr: 1e-5\nrun:\n  output: 2024\n"
    text += "data:\n  shards:\ntext:\n"
    config = load_config([write(tmp_path, "a.yaml", text)])
    assert config.log.wandb == "off"
    assert config.optimizer.lr == 1e-5
    assert config.run.output == "2024"
    assert config.data.shards == ""


def test_later_values_win_and_sections_merge(tmp_path):
    first = write(tmp_path, "a.yaml", "train: {steps: 5, micro_batch_size: 2}\nseed: 1\n")
    second = write(tmp_path, "b.yaml", "train: {steps: 6}\nvalidation: {prompts: [one, two]}\n")
    third = write(tmp_path, "c.yaml", "validation: {prompts: [three]}\n")
    config = load_config([first, second, third], ["seed=3", "seed=4", "data={height: 64}"])
    assert (config.train.steps, config.train.micro_batch_size) == (6, 2)
    assert config.validation.prompts == ("three",)
    assert (config.seed, config.data.height, config.data.width) == (4, 64, 720)


def test_empty_file(tmp_path):
    assert load_config([write(tmp_path, "a.yaml", "# nothing\n")]) == Config()


def test_round_trip_of_awkward_values(tmp_path):
    config = load_config(
        [],
        [
            "optimizer.lr=1e-5",
            "optimizer.eps=1.2345678901234567e-30",
            "run.output=off",
            "data.shards=2024",
            "text.weights= # no comment: 'x' \"y\" \\ ~",
            "validation.prompts=['null', '1e5', 'caf\u00e9 \u2603', '- a: b']",
            "codec.subfolder=null",
        ],
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config([str(tmp_path / "config.yaml")]) == config
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=40),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(min_value=0, max_value=2**63 - 1),
)
def test_round_trip(tmp_path_factory, text, lr, seed):
    start = Config()
    config = dataclasses.replace(
        start,
        seed=seed,
        run=dataclasses.replace(start.run, output=text),
        optimizer=dataclasses.replace(start.optimizer, lr=lr),
    )
    path = tmp_path_factory.mktemp("round") / "config.yaml"
    save_config(config, path)
    assert load_config([str(path)]) == config


def test_nothing_of_the_environment_is_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret")
    save_config(Config(), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "planted-secret" not in text
    assert not any(value in text for value in (os.environ.get("HOME", "?"), os.getcwd()))


def add_prompt(parser):
    parser.add_argument("--prompt", nargs="+")
    parser.add_argument("--load")


@pytest.mark.parametrize(
    "argv",
    [
        "--base A B seed=3 train.steps=7",
        "seed=3 --base A --base B -- train.steps=7",
        "--base A B --local_rank=1 seed=3 train.steps=7",
        "--local_rank 1 --base A B seed=3 --load x train.steps=7",
        "--local-rank=1 seed=3 --base A B --dry-run train.steps=7",
    ],
)
def test_command_line(argv, tmp_path):
    first = write(tmp_path, "a.yaml", "seed: 1\ntrain: {steps: 5}\n")
    second = write(tmp_path, "b=1.yaml", "data: {height: 64}\n")
    words = [{"A": first, "B": second}.get(word, word) for word in argv.split()]
    options, config = parse_cli(words, description="Test.", extra=add_prompt)
    assert (config.seed, config.train.steps, config.data.height) == (3, 7, 64)
    assert options.dry_run == ("--dry-run" in words)
    assert vars(options).keys() >= {"dry_run", "prompt", "load"}
    assert not vars(options).keys() & {"base", "overrides", "local_rank"}


def test_a_wrong_setting_ends_the_program_in_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_cli(["train.stesp=3"], description="Test.")
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "train.stesp: no such setting (nearest: train.steps)" in captured.err


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_cli(["--bsae", "x.yaml"], description="Test.")
    assert "--bsae" in capsys.readouterr().err


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_cli(["--help-config"], description="Test.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text == describe_settings()
    for key in setting_types():
        assert f"  {key} = " in text
    assert "Largest global gradient norm; 0 = off." in text


def test_docstrings_belong_to_their_fields():
    docs = setting_docs()
    assert docs["train"] == "The loop."
    assert docs["ema.decay"] == "Ceiling of min(decay, (1 + n) / (10 + n))."
    assert "ema.enabled" not in docs
    assert docs.keys() <= setting_types().keys() | typing.get_type_hints(Config).keys()


def test_notes_explain_a_run_that_ends_within_the_warm_up():
    (note,) = notes(load_config([], ["train.steps=5", "init.weights=tiny"]))
    assert "optimizer.warmup_steps=400 is above train.steps=5" in note
    assert notes(load_config([], ["init.weights=tiny"])) == []


def test_saved_file_is_plain_yaml(tmp_path):
    save_config(Config(), tmp_path / "config.yaml")
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert values["data"]["tasks"] == ["segmentation", "depth"]
    assert list(values) == [field.name for field in dataclasses.fields(Config)]
