import hashlib

import pytest

from sat_udpdiff.evaluation.feature_weights import PUBLISHED, find_feature_weights


@pytest.mark.parametrize("network", list(PUBLISHED))
def test_what_is_missing_is_named_with_where_to_get_it(network, tmp_path):
    published = PUBLISHED[network]
    with pytest.raises(ValueError) as error:
        find_feature_weights(str(tmp_path / "none.pth"), network=network, key="evaluation.x")
    message = str(error.value)
    assert message.startswith("evaluation.x: ") and "none.pth" in message
    assert published.file in message and "https://" in message


@pytest.mark.parametrize("network", list(PUBLISHED))
def test_a_file_or_the_folder_that_holds_it(network, tmp_path):
    file = tmp_path / PUBLISHED[network].file
    file.write_bytes(b"weights")
    for given in (file, tmp_path):
        found = find_feature_weights(str(given), network=network, key="x")
        assert found.path == file
        assert found.sha256 == hashlib.sha256(b"weights").hexdigest()


def test_a_folder_of_transformers_changes_with_its_weights_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x: no weights .* in .*get dino_vitbase16"):
        find_feature_weights(str(tmp_path), network="dino", key="x")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = find_feature_weights(str(tmp_path), network="dino", key="x")
    assert first.path == tmp_path
    (tmp_path / "README.md").write_text("more")
    assert find_feature_weights(str(tmp_path), network="dino", key="x") == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert find_feature_weights(str(tmp_path), network="dino", key="x").sha256 != first.sha256


def test_folders_that_cannot_serve_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x: no config.json in "):
        find_feature_weights(str(tmp_path), network="clip", key="x")
    with pytest.raises(ValueError, match=r"x: expected AMT-S .* found no file"):
        find_feature_weights(str(tmp_path), network="amt", key="x")


def test_a_hub_id_must_be_on_this_machine():
    with pytest.raises(ValueError, match=r"nobody/nothing-at-all is not on this machine; run `hf"):
        find_feature_weights("nobody/nothing-at-all", network="clip", key="x")
