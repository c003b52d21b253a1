"""Cached latents are what training would have encoded, and never those of another encoder."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice

import pytest
import torch

from data_loaders import latents
from data_loaders.batches import LatentBatch
from data_loaders.loader import Batches
from data_loaders.reader_pool import ReaderPool
from data_loaders.schema import DataError
from data_loaders.shards import ShardIndex, write_shards
from data_loaders.synthetic import WorldConfig, make_clip
from sat_udpdiff.config_io import load_config
from sat_udpdiff.encoders.identity import codec_identity
from sat_udpdiff.generation import Encoders
from sat_udpdiff.training.example import make_example

NUM_CLIPS = 6


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six clips in two shards, the last ones larger than what is trained."""
    folder = tmp_path_factory.mktemp("clips") / "shards"
    worlds = [
        WorldConfig(frames=9, height=32, width=48, world="simple"),
        WorldConfig(frames=25, height=64, width=80, world="simple", fps=24.0),
    ]
    samples = (make_clip(i, seed=0, config=worlds[i % 2]) for i in range(NUM_CLIPS))
    write_shards(samples, folder, samples_per_shard=4)
    return folder


def call(small_world, shards, cache, *more):
    return latents.main(
        ["--base", str(small_world.base), "--shards", str(shards), "--output", str(cache), *more]
    )


@pytest.fixture(scope="module")
def cache(small_world, clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "latents"
    assert call(small_world, clips, folder, "--recolourings", "2") == 0
    return folder


def run_config(small_world, *overrides):
    return load_config([str(small_world.base)], ["data.num_workers=0", *overrides])


def examples(config, count, *, start=0, world_size=1, rank=0):
    encoders = None if config.data.source == "latents" else Encoders.load(config, device="cpu")
    with Batches(config, start=start, world_size=world_size, place_rank=rank) as stream:
        return [
            (
                batch,
                make_example(
                    batch, encoders=encoders, config=config, samples_seen=start, global_batch=64
                ),
            )
            for batch in islice(stream, count)
        ]


def assert_same(video, cached):
    for (batch, example), (other, latent) in zip(video, cached, strict=True):
        assert isinstance(other, LatentBatch)
        assert batch.keys == other.keys and batch.captions == other.captions
        assert torch.equal(batch.task, other.task)
        assert torch.equal(batch.drop_caption, other.drop_caption)
        # float32; encoding other clips together changes the last bits.
        torch.testing.assert_close(latent.x0, example.x0, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(latent.text, example.text, rtol=1e-4, atol=1e-5)
        assert torch.equal(latent.noise, example.noise) and torch.equal(latent.t, example.t)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["data.tasks=[segmentation]", "data.task_weights=[1.0]", "model.task_signal=none"],
        ["model.dense_groups=0", "model.task_signal=none"],
        ["train.caption_dropout=0.5", "seed=0", "data.num_workers=2"],
    ],
)
def test_training_sees_the_same_in_both_ways(small_world, clips, cache, more):
    video = run_config(small_world, f"data.shards={clips}", "data.recolourings=2", *more)
    cached = run_config(small_world, "data.source=latents", f"data.latents={cache}", *more)
    # Three epochs of six clips: every clip has come in both of its colourings.
    assert_same(examples(video, 9), examples(cached, 9))
    assert_same(examples(video, 2, start=5), examples(cached, 2, start=5))


def test_with_one_recolouring_the_first_epoch_is_that_of_new_colours(small_world, clips, cache):
    video = run_config(small_world, f"data.shards={clips}")
    one = ["data.source=latents", f"data.latents={cache}", "data.recolourings=1"]
    assert_same(examples(video, 3), examples(run_config(small_world, *one), 3))


def test_captions_that_name_the_task_and_the_empty_one_are_cached(small_world, clips, tmp_path):
    more = ["model.task_signal=prompt", "text.unconditional=empty", "train.caption_dropout=0.5"]
    assert call(small_world, clips, tmp_path / "cache", *more) == 0
    video = run_config(small_world, f"data.shards={clips}", "data.recolourings=1", *more)
    source = ["data.source=latents", f"data.latents={tmp_path / 'cache'}"]
    assert_same(examples(video, 6), examples(run_config(small_world, *source, *more), 6))


def test_other_settings_are_refused_by_name(small_world, clips, cache, tmp_path, capsys):
    def refusal(*more):
        source = ["data.source=latents", f"data.latents={cache}"]
        with pytest.raises(DataError) as caught:
            Batches(run_config(small_world, *source, *more))
        return str(caught.value)

    assert "data.height was 32, now 64" in refusal("data.height=64")
    assert 'codec.dtype was "fp32", now "bf16"' in refusal("codec.dtype=bf16")
    assert "text.text_length was 16, now 20" in refusal("model.text_length=20")
    assert "captions was [" in refusal("model.task_signal=prompt")
    assert "data.recolourings: expected at most 2" in refusal("data.recolourings=3")
    # The same name, other weights: the digest of the files tells.
    folder = tmp_path / "codec"
    shutil.copytree(small_world.folder / "codec", folder)
    assert call(small_world, clips, cache, "--recolourings", "2", f"codec.weights={folder}") == 0
    weights = folder / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "codec.files.diffusion_pytorch_model" in refusal(f"codec.weights={folder}")
    assert call(small_world, clips, cache, "--recolourings", "2", f"codec.weights={folder}") == 1
    assert "holds latents of other settings or clips: codec.files" in capsys.readouterr().err


def test_a_cache_of_one_task_does_not_serve_another(small_world, clips, tmp_path):
    depth = ["data.tasks=[depth]", "data.task_weights=[1.0]", "model.task_signal=none"]
    assert call(small_world, clips, tmp_path / "cache", *depth) == 0
    members = ShardIndex.open(tmp_path / "cache", kind="latents").sample(0).members
    assert not any(name.startswith("seg") for name in members)
    source = ["data.source=latents", f"data.latents={tmp_path / 'cache'}"]
    with pytest.raises(DataError, match="holds no maps of segmentation"):
        Batches(run_config(small_world, *source))


def test_nothing_is_encoded_twice_and_several_processes_share_the_work(
    small_world, clips, cache, tmp_path, monkeypatch, capsys
):
    for rank in (1, 0):
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_PORT": 1}
        for name, value in (place | {"MASTER_ADDR": "127.0.0.1"}).items():
            monkeypatch.setenv(name, str(value))
        assert call(small_world, clips, tmp_path / "cache", "--recolourings", "2") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "this share is done; others are not yet"
    assert printed[1].startswith(f"{NUM_CLIPS} clips in 2 shard(s)")
    for name in ("shard-000000.tar", "shard-000001.tar", "manifest.json"):
        assert (tmp_path / "cache" / name).read_bytes() == (cache / name).read_bytes()
    monkeypatch.setattr(latents, "Encoding", None)
    assert call(small_world, clips, tmp_path / "cache", "--recolourings", "2") == 0
    # A shard that is gone is made again, and only that one.
    (tmp_path / "cache" / "shard-000000.tar").unlink()
    with pytest.raises(TypeError, match="NoneType"):
        call(small_world, clips, tmp_path / "cache", "--recolourings", "2")


def test_a_killed_run_goes_on(small_world, clips, cache, tmp_path, user_env):
    command = [sys.executable, "-m", "data_loaders.latents", "--base", str(small_world.base)]
    command += ["--shards", str(clips), "--output", str(tmp_path / "cache"), "--recolourings", "2"]
    first = subprocess.Popen(command, env=user_env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cache" / "shard-000000.done.json").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    with pytest.raises(DataError, match=r"expected manifest\.json"):
        ShardIndex.open(tmp_path / "cache", kind="latents")
    before = os.stat(tmp_path / "cache" / "shard-000000.tar").st_mtime_ns
    assert call(small_world, clips, tmp_path / "cache", "--recolourings", "2") == 0
    assert os.stat(tmp_path / "cache" / "shard-000000.tar").st_mtime_ns == before
    for name in ("shard-000000.tar", "shard-000001.tar"):
        assert (tmp_path / "cache" / name).read_bytes() == (cache / name).read_bytes()


def test_a_full_disk_leaves_whole_shards_only(small_world, clips, tmp_path, monkeypatch, capsys):
    write = latents.write_shard

    def full(path, entries):
        if path.name == "shard-000001.tar":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, entries)

    monkeypatch.setattr(latents, "write_shard", full)
    assert call(small_world, clips, tmp_path / "cache") == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "shard-000001.tar" in error
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert "shard-000000.done.json" in names and "manifest.json" not in names
    assert not any("000001" in name for name in names)
    monkeypatch.undo()
    assert call(small_world, clips, tmp_path / "cache") == 0


def damage(folder, number, *members):
    """Overwrite the middle of some members of a clip; sizes and headers stay."""
    stored = ShardIndex.open(folder).sample(number)
    with stored.path.open("r+b") as file:
        for member in members or stored.members:
            at = stored.members[member]
            file.seek(at.offset + at.size // 2)
            file.write(b"\0" * 8)
    return stored.key


def test_damaged_clips_are_named_in_the_cache_and_replaced_alike(
    small_world, clips, tmp_path, capsys
):
    shards = tmp_path / "shards"
    shutil.copytree(clips, shards)
    key = damage(shards, 2)
    share = "data.max_bad_share=0.2"
    assert call(small_world, shards, tmp_path / "cache", share) == 0
    assert "5 clips, 1 damaged in 2 shard(s)" in capsys.readouterr().out
    stored = ShardIndex.open(tmp_path / "cache", kind="latents").sample(2)
    assert stored.key == key and not stored.members and "damaged" in stored.note
    video = run_config(small_world, f"data.shards={shards}", "data.recolourings=1", share)
    source = ["data.source=latents", f"data.latents={tmp_path / 'cache'}", share]
    assert_same(examples(video, 6), examples(run_config(small_world, *source), 6))
    assert call(small_world, shards, tmp_path / "other", "data.max_bad_share=0.1") == 1
    assert f"1 of 6 clips are damaged (16.7%; data.max_bad_share allows 10.0%): {key}" in (
        capsys.readouterr().err
    )


def test_a_damaged_cache_is_noticed(small_world, cache, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    stored = ShardIndex.open(folder, kind="latents").sample(0)
    at = stored.members["video.safetensors"]
    with stored.path.open("r+b") as file:
        file.seek(at.offset + at.size // 2)
        file.write(b"\1" * 8)
    source = ["data.source=latents", f"data.latents={folder}", "data.max_bad_share=0"]
    with pytest.raises(DataError, match=rf"{stored.key}: .*'video.safetensors': damaged"):
        examples(run_config(small_world, *source), 4)


def test_a_process_that_is_killed_leaves_no_hole_in_the_cache(
    small_world, clips, cache, tmp_path, monkeypatch
):
    submit, killed = ReaderPool.submit, []

    def submit_and_kill(self, task):
        future = submit(self, task)
        while not killed and not future.running() and not future.done():
            time.sleep(0.001)
        if not killed:
            killed.append(self.process_ids()[0])
            os.kill(killed[0], signal.SIGKILL)
        return future

    monkeypatch.setattr(ReaderPool, "submit", submit_and_kill)
    assert call(small_world, clips, tmp_path / "cache", "--recolourings", "2") == 0
    assert killed
    name = "shard-000000.tar"
    assert (tmp_path / "cache" / name).read_bytes() == (cache / name).read_bytes()


def test_a_cache_of_other_clips_is_not_replaced(small_world, clips, cache, tmp_path, capsys):
    shards, before = tmp_path / "shards", (cache / "manifest.json").read_bytes()
    write_shards([make_clip(9, seed=0, config=WorldConfig(frames=9, height=32, width=48))], shards)
    assert call(small_world, shards, cache, "--recolourings", "2") == 1
    assert "other settings or clips: clips was " in capsys.readouterr().err
    assert (cache / "manifest.json").read_bytes() == before
    own = tmp_path / "cache"
    shutil.copytree(cache, own)
    assert call(small_world, shards, own, "--recolourings", "2", "--overwrite") == 0
    assert {path.name for path in own.glob("shard-*")} == {
        f"shard-000000.{ending}" for ending in ("tar", "index.json", "done.json")
    }


def test_a_dry_run_says_how_large_it_would_be(small_world, clips, cache, tmp_path, capsys):
    assert call(small_world, clips, tmp_path / "no", "--recolourings", "2", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "no").exists()
    assert "6 clips in 2 shard(s)" in printed and "4 posterior(s)" in printed
    estimated = float(printed.split("in all: ")[1].split(" GB")[0]) * 1e9
    content = sum(ShardIndex.open(cache, kind="latents").manifest.totals.member_bytes.values())
    assert estimated == pytest.approx(content, rel=0.1)


def test_clips_are_not_taken_for_an_old_cache(small_world, clips, tmp_path, capsys):
    shards = tmp_path / "shards"
    shutil.copytree(clips, shards)
    for output, more in ((shards, []), (shards / ".." / "shards", ["--overwrite"])):
        assert call(small_world, clips if output == clips else shards, output, *more) == 1
        assert "expected a folder of its own" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(clips, other)
    assert call(small_world, clips, other, "--overwrite") == 1
    assert f"{other} holds clips" in capsys.readouterr().err
    assert len(ShardIndex.open(other)) == len(ShardIndex.open(shards)) == NUM_CLIPS


def test_a_cache_says_what_made_it_or_is_not_made(small_world, clips, tmp_path, capsys):
    more = ["codec.weights=some-body/some-codec"]
    assert call(small_world, clips, tmp_path / "cache", *more) == 1
    expected = "codec.weights: some-body/some-codec is not on this machine: hf download some-body"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("weights", ["/folder/that/is/gone", "some-body/some-codec"])
def test_training_from_a_cache_needs_no_encoders(small_world, cache, caplog, weights):
    source = ["data.source=latents", f"data.latents={cache}", f"codec.weights={weights}"]
    assert len(examples(run_config(small_world, *source), 2)) == 2
    assert "codec.files is not here" in caplog.text


def test_a_model_of_the_hub_is_known_by_its_files(tmp_path, monkeypatch, small_world):
    config = run_config(small_world, "codec.weights=some-body/some-codec", "codec.subfolder=vae")
    assert codec_identity(config.codec)["files"] == {}
    snapshot = tmp_path / "hub" / "models--some-body--some-codec" / "snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    shutil.copytree(small_world.folder / "codec", snapshot / "vae")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = codec_identity(config.codec)["files"]
    assert found == codec_identity(run_config(small_world).codec)["files"] != {}


def test_wrong_options_end_in_one_line(small_world, clips, tmp_path, capsys):
    for more, message in [
        (["--recolourings", "0"], "--recolourings: expected at least 1, got 0"),
        (["data.crop=random"], "latents have one size and one crop: set data.crop=center"),
    ]:
        assert call(small_world, clips, tmp_path / "cache", *more) == 1
        assert message in capsys.readouterr().err
    assert call(small_world, tmp_path / "nowhere", tmp_path / "cache") == 1
    assert "expected manifest.json, found no such folder" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_the_encoders_own_dtype_is_kept(small_world, clips, tmp_path):
    # One clip at a time, so that both ways compute the very same.
    more = ["codec.dtype=bf16", "codec.slicing=true", "text.dtype=bf16"]
    assert call(small_world, clips, tmp_path / "cache", *more) == 0
    video = run_config(small_world, f"data.shards={clips}", "data.recolourings=1", *more)
    source = ["data.source=latents", f"data.latents={tmp_path / 'cache'}"]
    cached = run_config(small_world, *source, *more)
    for (_, example), (_, latent) in zip(examples(video, 3), examples(cached, 3), strict=True):
        assert torch.equal(example.x0, latent.x0)
        assert latent.text.dtype == example.text.dtype == torch.bfloat16
    stored = ShardIndex.open(tmp_path / "cache", kind="latents").sample(0)
    # 16 bits for each number of the posterior's two halves, and a header.
    assert stored.members["video.safetensors"].size < 2 * 2 * 3 * 4 * 8 * 12 + 300


def test_encoders_are_not_loaded_for_latents(small_world, cache, tmp_path, monkeypatch):
    from sat_udpdiff.training.setup import load_encoders

    monkeypatch.setattr(Encoders, "load", None)
    config = run_config(small_world, "data.source=latents", f"data.latents={cache}")
    assert load_encoders(config, device=torch.device("cpu")) is None
    shown = replace(config, validation=replace(config.validation, every_steps=1, prompts=("a",)))
    with pytest.raises(TypeError, match="NoneType"):
        load_encoders(shown, device=torch.device("cpu"))
