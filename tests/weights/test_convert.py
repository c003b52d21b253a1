"""The converter as its user runs it: there and back, and what it refuses."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sat_udpdiff import convert
from sat_udpdiff.config_io import load_config
from sat_udpdiff.weights.codec_files import SAT_CODEC_FILE
from sat_udpdiff.weights.key_map import SAT_PREFIX, strip_sat_prefix, to_diffusers
from sat_udpdiff.weights.pickles import load_pickle
from sat_udpdiff.weights.sources import open_network
from sat_udpdiff.weights.stored import cast
from sat_udpdiff.weights.write import write_pickle, write_safetensors, write_sharded
from tests.weights.synthetic_release import ROOT, network_state, sat_state, write_release

CONFIGS = ROOT / "configs"
FREE_FOR_2B = 12e9


def bases(family, task):
    return ["--base", str(CONFIGS / f"{family}.yaml"), str(CONFIGS / f"{task}.yaml")]


def made(family, task):
    return load_config(bases(family, task)[1:])


def run(*words):
    return convert.main([str(word) for word in words])


def refused(capsys, *words):
    """Standard error of a conversion that must fail in one line, and leave nothing."""
    capsys.readouterr()
    target = Path(str(words[1]))
    before = sorted(target.parent.iterdir())
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert sorted(target.parent.iterdir()) == before
    return error


def same(a, b):
    """Equal bits: random bits are NaN now and then."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().view(torch.int16), b.contiguous().view(torch.int16))
    )


def network_file(folder):
    return folder / "transformer" / "1" / "mp_rank_00_model_states.pt"


def there_and_back(folder, *, family, task, dtype, options=()):
    """SAT -> ours -> diffusers -> ours -> SAT; the tensors that are not the same."""
    release = write_release(folder / "release", made(family, task), dtype)
    source = folder / "release"
    for step, form in enumerate(("udpdiff", "diffusers", "udpdiff", "sat")):
        target = folder / f"{step}_{form}"
        assert run(source, target, "--to", form, *options) == 0
        if step:
            shutil.rmtree(source)
        source = target
    before, after = load_pickle(release)["module"], load_pickle(network_file(source))["module"]
    assert before.keys() == after.keys()
    return [name for name in before if not same(before[name], after[name])]


@pytest.mark.parametrize("task", ["baseline", "multitask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tiny_comes_back_to_the_bit(tmp_path, task, dtype):
    options = bases("tiny", task) if task == "baseline" else []
    wrong = there_and_back(tmp_path, family="tiny", task=task, dtype=dtype, options=options)
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("task", ["baseline", "multitask"])
def test_2b_comes_back_to_the_bit(tmp_path, task):
    free = shutil.disk_usage(tmp_path).free
    if free < FREE_FOR_2B:
        pytest.skip(f"needs {FREE_FOR_2B / 1e9:.0f} GB of disk at {tmp_path}, {free:,} are free")
    wrong = there_and_back(tmp_path, family="2b", task=task, dtype=torch.float16)
    shutil.rmtree(tmp_path)
    assert wrong == []


@pytest.fixture
def release(tmp_path):
    """A tiny SAT release with 16 channels, in bf16."""
    write_release(tmp_path / "release", made("tiny", "baseline"), torch.bfloat16)
    return tmp_path / "release"


def test_what_a_conversion_says(release, tmp_path, capsys):
    assert run(release, tmp_path / "out", "--to", "udpdiff", "--expand", "duplicate") == 0
    said = capsys.readouterr().out
    assert "sat, the tiny CogVideoX, 16 channels, bfloat16" in said
    assert "udpdiff, 32 channels, task table, bfloat16, 125 tensors, 0.01 GB" in said
    config = load_config([str(tmp_path / "out" / "config.yaml")])
    assert config.model == made("tiny", "multitask").model


def test_a_dry_run_writes_nothing(release, tmp_path, capsys):
    assert run(release, tmp_path / "out", "--to", "sat", "--dry-run") == 0
    assert "to   " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_expansion_happens_once(release, tmp_path):
    assert run(release, tmp_path / "a", "--to", "udpdiff", "--expand", "duplicate") == 0
    assert run(tmp_path / "a", tmp_path / "b", "--to", "udpdiff", "--expand", "duplicate") == 0
    a, b = (tmp_path / name / "network.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    key, base = "mixins.patch_embed.proj.weight", load_pickle(network_file(release))["module"]
    assert same(load_file(a)[key], torch.cat([base[SAT_PREFIX + key]] * 2, dim=1))
    table = load_file(a)["mixins.task_embedding.table.weight"]
    assert table.shape == (2, 128) and not table.any()


def test_new_channels_may_be_drawn(release, tmp_path):
    words = ("--to", "udpdiff", "--expand", "random", "seed=4")
    assert run(release, tmp_path / "a", *words) == 0
    weight = load_file(tmp_path / "a" / "network.safetensors")["mixins.patch_embed.proj.weight"]
    assert not torch.equal(weight[:, :16], weight[:, 16:])
    config = load_config([str(tmp_path / "a" / "config.yaml")])
    assert (config.init.dense_channels, config.seed) == ("random", 4)


def test_a_dtype_is_cast_tensor_by_tensor(tmp_path):
    state = network_state(made("tiny", "baseline"), torch.float32)
    write_safetensors(tmp_path / "network.safetensors", state)
    source = tmp_path / "network.safetensors"
    assert run(source, tmp_path / "out", "--to", "udpdiff", "--dtype", "bf16") == 0
    loaded = load_file(tmp_path / "out" / "network.safetensors")
    assert all(same(loaded[k], cast(k, v, torch.bfloat16).read()) for k, v in state.items())


def test_averaged_weights_of_sat(release, tmp_path, capsys):
    step = network_file(release).parent
    averaged = release / "transformer" / "1-ema"
    shutil.copytree(step, averaged)
    other = sat_state(made("tiny", "baseline"), torch.float16)
    write_pickle(averaged / "mp_rank_00_model_states.pt", other, under="module")
    assert run(release, tmp_path / "plain", "--to", "udpdiff") == 0
    assert run(release, tmp_path / "ema", "--to", "udpdiff", "--ema") == 0
    dtypes = [
        load_file(tmp_path / name / "network.safetensors")["time_embed.0.bias"].dtype
        for name in ("plain", "ema")
    ]
    assert dtypes == [torch.bfloat16, torch.float16]
    shutil.rmtree(averaged)
    assert "of averaged weights" in refused(
        capsys, release, tmp_path / "none", "--to", "udpdiff", "--ema"
    )


def test_what_sat_users_trained_opens_without_the_rest(release, tmp_path):
    """Text encoder, codec and states of random generators lie in the same file."""
    file = network_file(release)
    module = dict(load_pickle(file)["module"])
    module["conditioner.embedders.0.transformer.shared.weight"] = torch.ones(3)
    module["first_stage_model.decoder.conv_in.conv.bias"] = torch.ones(3)
    rest = {"iteration": 4, "np_rng_state": np.random.get_state(), "torch_rng_state": torch.ones(9)}
    file.with_suffix(".new").touch()
    torch.save({"module": {k: v.clone() for k, v in module.items()}, **rest}, file)
    assert run(release, tmp_path / "out", "--to", "udpdiff") == 0
    loaded = load_file(tmp_path / "out" / "network.safetensors")
    assert loaded.keys() == network_state(made("tiny", "baseline"), torch.bfloat16).keys()


class TestCodec:
    """The video codec goes along."""

    @pytest.fixture
    def sat(self, tmp_path):
        """The shipped network and codec, as a SAT release."""
        assert run("tiny", tmp_path / "sat", "--to", "sat") == 0
        return tmp_path / "sat"

    def test_there_and_back(self, sat, tmp_path):
        (sat / "config.yaml").unlink()
        assert run(sat, tmp_path / "diffusers", "--to", "diffusers") == 0
        shipped = ROOT / "sat_udpdiff" / "tiny" / "weights" / "codec"
        name = "diffusion_pytorch_model.safetensors"
        before = load_file(shipped / name)
        after = load_file(tmp_path / "diffusers" / "vae" / name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert run(tmp_path / "diffusers", tmp_path / "again", "--to", "sat") == 0
        first, second = (load_pickle(f / SAT_CODEC_FILE) for f in (sat, tmp_path / "again"))
        assert list(first) == ["state_dict"]
        assert all(torch.equal(first["state_dict"][k], v) for k, v in second["state_dict"].items())

    def test_the_converted_one_is_named_in_the_configuration(self, sat, tmp_path):
        (sat / "config.yaml").unlink()
        assert run(sat, tmp_path / "ours", "--to", "udpdiff") == 0
        config = load_config([str(tmp_path / "ours" / "config.yaml")])
        assert config.codec.weights == str(tmp_path / "ours")
        from sat_udpdiff.encoders.vae import VideoCodec

        assert VideoCodec.load(config.codec).latent_channels == 16

    def test_the_one_that_a_sat_user_saved_with_everything_goes_along(self, sat, tmp_path):
        module = {k: v.clone() for k, v in load_pickle(network_file(sat))["module"].items()}
        codec = load_pickle(sat / SAT_CODEC_FILE)["state_dict"]
        module |= {f"first_stage_model.{key}": value.clone() for key, value in codec.items()}
        torch.save({"module": module}, network_file(sat))
        shutil.rmtree(sat / "vae")
        assert run(sat, tmp_path / "out", "--to", "sat") == 0
        found = load_pickle(tmp_path / "out" / SAT_CODEC_FILE)["state_dict"]
        assert found.keys() == codec.keys()
        assert all(torch.equal(found[key], codec[key]) for key in codec)

    def test_a_damaged_one_is_not_handed_on(self, tmp_path, capsys):
        assert run("tiny", tmp_path / "dif", "--to", "diffusers") == 0
        file = tmp_path / "dif" / "vae" / "diffusion_pytorch_model.safetensors"
        os.truncate(file, file.stat().st_size // 2)
        for form in ("diffusers", "sat"):
            error = refused(capsys, tmp_path / "dif", tmp_path / "out", "--to", form)
            assert f"{file}: not a readable safetensors file, cut short" in error

    def test_a_damaged_one_is_named_key_by_key(self, sat, tmp_path, capsys):
        file = sat / SAT_CODEC_FILE
        state = dict(load_pickle(file)["state_dict"])
        del state["decoder.conv_out.conv.bias"]
        state = {key: value.clone() for key, value in state.items()}
        torch.save({"state_dict": state}, file)
        error = refused(capsys, sat, tmp_path / "out", "--to", "udpdiff")
        assert "3d-vae.pt: not the weights of the video codec: 1 missing key: dec" in error


class TestConfiguration:
    """Whose configuration a conversion takes."""

    def test_a_folder_may_be_moved(self, tmp_path):
        assert run("tiny", tmp_path / "a", "--to", "diffusers") == 0
        (tmp_path / "a").rename(tmp_path / "b")
        assert run(tmp_path / "b", tmp_path / "c", "--to", "diffusers") == 0
        assert (tmp_path / "c" / "text_encoder" / "model.safetensors").is_file()
        config = load_config([str(tmp_path / "c" / "config.yaml")])
        assert config.codec.weights == config.text.weights == str(tmp_path / "c")

    def test_that_of_another_folder_is_not_taken(self, release, tmp_path, monkeypatch, capsys):
        foreign = tmp_path / "config.yaml"
        foreign.write_text("model: {num_layers: 3}\n")
        monkeypatch.chdir(tmp_path)
        for source in (release, "tiny"):
            assert run(source, tmp_path / f"of_{Path(source).name}", "--to", "udpdiff") == 0
        assert "described by" not in capsys.readouterr().out

    def test_its_own_is_taken_and_named(self, tmp_path, capsys):
        words = ("--expand", "duplicate", "colormap.segmentation=location_aware")
        assert run("tiny", tmp_path / "a", "--to", "sat", *words) == 0
        capsys.readouterr()
        for number, place in enumerate(("a", "a/transformer", "a/transformer/1")):
            assert run(tmp_path / place, tmp_path / f"{number}", "--to", "udpdiff") == 0
            assert f"described by {tmp_path / 'a' / 'config.yaml'}" in capsys.readouterr().out
            config = load_config([str(tmp_path / f"{number}" / "config.yaml")])
            assert config.colormap.segmentation == "location_aware"

    def test_what_the_user_gives_wins_over_expansion(self, release, tmp_path, capsys):
        words = ("--to", "udpdiff", "--expand", "duplicate")
        assert run(release, tmp_path / "a", *words, *bases("tiny", "depth")) == 0
        config = load_config([str(tmp_path / "a" / "config.yaml")])
        assert (config.data.tasks, config.model.task_signal) == (("depth",), "none")
        error = refused(capsys, release, tmp_path / "b", *words, *bases("tiny", "baseline"))
        assert "model.dense_groups: expected 1 together with --expand, got 0" in error


class TestRefusals:
    """One line each, nothing written."""

    def test_1_5_weights_in_a_1_0_configuration(self, tmp_path, capsys):
        config = made("tiny", "baseline")
        state = dict(network_state(config, torch.bfloat16))
        d, names = config.model.hidden_size, ("patch_embed.proj", "final_layer.linear")
        first, last = (f"mixins.{name}.weight" for name in names)
        save = {key: value.read() for key, value in state.items()}
        save[first] = torch.zeros(d, 16 * 8).bfloat16()
        save[last] = torch.zeros(16 * 8, d).bfloat16()
        save["mixins.final_layer.linear.bias"] = torch.zeros(16 * 8).bfloat16()
        save_file(save, tmp_path / "w.safetensors")
        words = ("--to", "udpdiff", *bases("tiny", "baseline"))
        error = refused(capsys, tmp_path / "w.safetensors", tmp_path / "out", *words)
        assert "not of model.family=tiny" in error
        assert "model.patch_size_t expected 1, got 2" in error

    def test_image_to_video_weights(self, release, tmp_path, capsys):
        file = network_file(release)
        state = {k: v.clone() for k, v in load_pickle(file)["module"].items()}
        key = SAT_PREFIX + "mixins.patch_embed.proj.weight"
        state[key] = torch.cat([state[key]] * 2, dim=1)
        torch.save({"module": state}, file)
        error = refused(capsys, release, tmp_path / "out", "--to", "udpdiff")
        assert "image-to-video (32 channels in, 16 out), which reads an image" in error

    def test_image_to_video_weights_of_diffusers(self, tmp_path, capsys):
        state = to_diffusers(network_state(made("tiny", "baseline"), torch.bfloat16))
        saved = {key: value.read().contiguous() for key, value in state.items()}
        saved["ofs_embedding.linear_1.weight"] = torch.zeros(8, 8).bfloat16()
        folder = tmp_path / "release" / "transformer"
        folder.mkdir(parents=True)
        save_file(saved, folder / "diffusion_pytorch_model.safetensors")
        error = refused(capsys, tmp_path / "release", tmp_path / "out", "--to", "udpdiff")
        assert "image-to-video" in error

    def test_a_truncated_file(self, tmp_path, capsys):
        state = network_state(made("tiny", "baseline"), torch.bfloat16)
        file = tmp_path / "w.safetensors"
        write_safetensors(file, state)
        os.truncate(file, file.stat().st_size - 1)
        error = refused(capsys, file, tmp_path / "out", "--to", "udpdiff")
        assert f"{file}: not a readable safetensors file, cut short" in error

    def test_a_pickle_with_code_in_it(self, release, tmp_path, capsys):
        class Payload:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "ran"),))

        file = network_file(release)
        state = {k: v.clone() for k, v in load_pickle(file)["module"].items()}
        torch.save({"module": state, "extra": Payload()}, file)
        error = refused(capsys, release, tmp_path / "out", "--to", "udpdiff")
        assert "this pickle asks for posix.mkdir" in error
        assert "--trust-pickle" in error
        assert not (tmp_path / "ran").exists()
        assert run(release, tmp_path / "out", "--to", "udpdiff", "--trust-pickle") == 0
        assert (tmp_path / "ran").exists()

    def test_a_missing_shard(self, tmp_path, capsys):
        folder = tmp_path / "release" / "transformer"
        folder.mkdir(parents=True)
        state = to_diffusers(network_state(made("tiny", "baseline"), torch.bfloat16))
        write_sharded(folder, state, stem="diffusion_pytorch_model", max_shard_bytes=2_000_000)
        lost = sorted(folder.glob("*-00002-of-*"))[0]
        lost.unlink()
        error = refused(capsys, tmp_path / "release", tmp_path / "out", "--to", "udpdiff")
        assert f"the shard {lost.name} is missing, with" in error

    def test_an_index_that_names_what_no_shard_holds(self, tmp_path, capsys):
        folder = tmp_path / "release" / "transformer"
        folder.mkdir(parents=True)
        state = to_diffusers(network_state(made("tiny", "baseline"), torch.bfloat16))
        write_sharded(folder, state, stem="diffusion_pytorch_model", max_shard_bytes=2_000_000)
        (index,) = folder.glob("*.index.json")
        content = json.loads(index.read_text())
        content["weight_map"]["lost.weight"] = next(iter(content["weight_map"].values()))
        index.write_text(json.dumps(content))
        error = refused(capsys, tmp_path / "release", tmp_path / "out", "--to", "udpdiff")
        assert "lost.weight is in diffusion_pytorch_model.safetensors.index.json and in no" in error

    @pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float64])
    def test_a_wrong_dtype(self, dtype, tmp_path, capsys):
        state = network_state(made("tiny", "baseline"), torch.float32)
        saved = {key: value.read() for key, value in state.items()}
        for layer in (2, 3):
            key = f"transformer.layers.{layer}.mlp.dense_4h_to_h.weight"
            saved[key] = torch.zeros(saved[key].shape).to(dtype)
        save_file(saved, tmp_path / "w.safetensors")
        error = refused(capsys, tmp_path / "w.safetensors", tmp_path / "out", "--to", "udpdiff")
        kind = str(dtype).removeprefix("torch.")
        assert f"got {kind}: transformer.layers.{{2-3}}.mlp.dense_4h_to_h.weight" in error

    def test_weights_that_leave_the_range_of_the_new_dtype(self, tmp_path, capsys):
        state = network_state(made("tiny", "baseline"), torch.float32)
        saved = {key: value.read() for key, value in state.items()}
        saved["time_embed.0.bias"][3] = 1e5
        save_file(saved, tmp_path / "w.safetensors")
        words = (tmp_path / "w.safetensors", tmp_path / "out", "--to", "sat", "--dtype", "fp16")
        assert "time_embed.0.bias: its largest number 1e+05 does not fit" in refused(capsys, *words)

    def test_another_network(self, tmp_path, capsys):
        save_file({"model.layers.0.q_proj.weight": torch.ones(2)}, tmp_path / "llm.safetensors")
        error = refused(capsys, tmp_path / "llm.safetensors", tmp_path / "out", "--to", "sat")
        assert "no weights of CogVideoX: there is no mixins.patch_embed.proj.weight" in error
        assert "model.layers.0.q_proj.weight" in error

    def test_a_network_that_nobody_released_needs_its_configuration(self, tmp_path, capsys):
        values = {"model": {"family": "tiny", "num_layers": 2}}
        (tmp_path / "two.yaml").write_text(yaml.safe_dump(values))
        base = [*bases("tiny", "baseline"), str(tmp_path / "two.yaml")]
        state = network_state(load_config(base[1:]), torch.bfloat16)
        file = tmp_path / "w.safetensors"
        write_safetensors(file, state)
        error = refused(capsys, file, tmp_path / "out", "--to", "sat")
        assert "a CogVideoX of 2 layers of 192, which was not released" in error
        assert run(file, tmp_path / "out", "--to", "sat", *base) == 0

    def test_one_dense_map_of_unknown_meaning(self, tmp_path, capsys):
        state = network_state(made("tiny", "depth"), torch.bfloat16)
        write_safetensors(tmp_path / "w.safetensors", state)
        error = refused(capsys, tmp_path / "w.safetensors", tmp_path / "out", "--to", "diffusers")
        assert "make one dense map and do not say which" in error

    def test_a_place_that_is_taken(self, release, tmp_path, capsys):
        assert run(release, tmp_path / "out", "--to", "udpdiff") == 0
        (tmp_path / "out" / "mine").touch()
        for words in ((), ("--dry-run",)):
            error = refused(capsys, release, tmp_path / "out", "--to", "sat", *words)
            assert "exists already; give --overwrite" in error
        assert run(release, tmp_path / "out", "--to", "udpdiff", "--overwrite") == 0
        assert not (tmp_path / "out" / "mine").exists()

    def test_a_folder_of_something_else_is_never_replaced(self, release, tmp_path, capsys):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "thesis.txt").touch()
        words = (tmp_path / "precious", "--to", "sat", "--overwrite")
        assert "expected an older conversion to replace" in refused(capsys, release, *words)
        assert (tmp_path / "precious" / "thesis.txt").exists()

    def test_what_the_result_points_to_is_never_replaced(self, tmp_path, capsys):
        assert run("tiny", tmp_path / "dif", "--to", "diffusers") == 0
        assert run(tmp_path / "dif", tmp_path / "ours", "--to", "udpdiff") == 0
        words = (tmp_path / "dif", "--to", "udpdiff", "--overwrite")
        error = refused(capsys, tmp_path / "ours", *words)
        assert "expected a folder other than the source" in error

    def test_a_link_keeps_pointing_to_the_folder(self, release, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "target")
        for words in ((), ("--overwrite",)):
            assert run(release, tmp_path / "link", "--to", "udpdiff", *words) == 0
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target" / "network.safetensors").is_file()
        assert len(list(tmp_path.iterdir())) == 3

    def test_the_source_is_never_replaced(self, release, capsys):
        for target in (release, release / "transformer"):
            error = refused(capsys, release, target, "--to", "sat", "--overwrite")
            assert "expected a folder other than the source" in error
        assert open_network(network_file(release)).form == "sat"

    def test_no_space(self, release, tmp_path, capsys, monkeypatch):
        usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        error = refused(capsys, release, tmp_path / "out", "--to", "sat")
        assert "no space: the result takes" in error

    def test_a_failure_in_the_middle_leaves_the_older_folder(
        self, release, tmp_path, capsys, monkeypatch
    ):
        assert run(release, tmp_path / "out", "--to", "udpdiff") == 0

        def fail(*args, **kwargs):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(convert, "save_config", fail)
        error = refused(capsys, release, tmp_path / "out", "--to", "udpdiff", "--overwrite")
        assert "Input/output error" in error
        assert (tmp_path / "out" / "network.safetensors").is_file()


def test_the_names_in_a_sat_release_have_their_prefix(release):
    names = load_pickle(network_file(release))["module"]
    assert all(name.startswith(SAT_PREFIX) for name in names)
    assert (
        strip_sat_prefix(names).keys()
        >= network_state(made("tiny", "baseline"), torch.bfloat16).keys()
    )
