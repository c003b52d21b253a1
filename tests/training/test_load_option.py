"""`train.py --load`: one place for the network, the codec and the text encoder."""

import pytest
import yaml

from sat_udpdiff import train
from tests.weights.synthetic_release import ROOT

BASE = ["--base", *(str(ROOT / "configs" / f"{name}.yaml") for name in ("tiny", "multitask"))]


def frozen(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    return folder


def config_of(capsys, *words):
    assert train.main([*map(str, words), *BASE, "--dry-run"]) == 0
    resolved = capsys.readouterr().out.split("# resolved configuration\n")[1].split("\n# ")[0]
    return yaml.safe_load(resolved)


def test_a_release_of_diffusers_brings_codec_and_text_encoder(tmp_path):
    folder = frozen(tmp_path / "dif", "vae", "text_encoder")
    words = train._with_weights(["--load", str(folder), "seed=1"])
    assert words == [
        f"init.weights={folder}",
        f"codec.weights={folder}",
        "codec.subfolder=vae",
        f"text.weights={folder}",
        "--load",
        str(folder),
        "seed=1",
    ]


def test_a_release_of_sat_brings_its_text_encoder(tmp_path):
    folder = frozen(tmp_path / "sat", "t5-v1_1-xxl")
    assert f"text.weights={folder / 't5-v1_1-xxl'}" in train._with_weights(["--load", str(folder)])


def test_what_the_user_sets_wins(tmp_path, capsys):
    folder = frozen(tmp_path / "dif", "vae")
    found = config_of(capsys, "codec.weights=tiny", "codec.subfolder=null", "--load", folder)
    assert found["init"]["weights"] == str(folder)
    assert (found["codec"]["weights"], found["codec"]["subfolder"]) == ("tiny", None)
    assert found["text"]["weights"] == "tiny"


@pytest.mark.parametrize("words", [(), ("init.weights=tiny",)])
def test_without_it_nothing_changes(words):
    assert train._with_weights(list(words)) == list(words)
