"""ZeRO checkpoints put together, against deepspeed's own program for that."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sat_udpdiff.free_port import free_port
from sat_udpdiff.weights.find import find_weights
from sat_udpdiff.weights.sources import open_network
from sat_udpdiff.weights.stored import read_all
from sat_udpdiff.weights.zero_shards import read_zero_folder

SCRIPT = Path(__file__).with_name("save_zero.py")
ROOT = SCRIPT.parents[2]
# Odd sizes, so that pieces are padded and tensors cross from one rank to the next.
MODEL = {
    "family": "tiny", "num_layers": 2, "hidden_size": 32, "num_heads": 2, "time_embed_dim": 17,
    "text_dim": 7, "text_length": 4, "latent_channels": 4, "patch_size": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("zero") / "base.yaml"
    codec = {"spatial_compression": 8, "temporal_compression": 4}
    path.write_text(yaml.safe_dump({"model": MODEL, "codec": codec}))
    return path


@pytest.fixture(scope="module", params=[1, 2, 3])
def checkpoint(request, base, tmp_path_factory):
    """A folder as `save_checkpoint` leaves it, saved by two ranks at stage 1, 2 and 3."""
    folder = tmp_path_factory.mktemp(f"stage{request.param}")
    port = str(free_port())
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    done = subprocess.run(
        [sys.executable, *words, str(SCRIPT), str(folder), str(request.param), str(base)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def shards(checkpoint, tmp_path):
    """A copy of the folder of shards, to be damaged."""
    (source,) = checkpoint.glob("global_step*")
    return Path(shutil.copytree(source, tmp_path / "shards"))


@pytest.mark.filterwarnings(
    # torch.jit inside deepspeed, at its import.
    "ignore:`torch.jit.script:DeprecationWarning"
)
def test_equal_to_what_deepspeed_puts_together(checkpoint):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    expected = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    (folder,) = checkpoint.glob("global_step*")
    ours = read_all(read_zero_folder(folder))
    trained = {name for name in expected if name.startswith("model.")}
    assert len(trained) > 40
    assert ours.keys() >= trained
    assert all(torch.equal(ours[name], expected[name]) for name in trained)
    assert all(ours[name].dtype == torch.float32 for name in trained)


def test_found_by_the_folder_of_the_run_and_opened_as_a_network(checkpoint):
    found = find_weights(str(checkpoint), ema=False)
    assert found.parent == checkpoint
    stored = open_network(found)
    assert stored.form == "zero"
    assert stored.facts.num_layers == 2
    assert stored.facts.has_task_table
    assert not any(name.startswith(("model.", "first_stage")) for name in stored.state)
    assert not any(tensor.isnan().any() for tensor in read_all(stored.state).values())


def test_a_missing_rank_is_named(shards):
    next(shards.glob("*zero_pp_rank_1_mp_rank_00_optim_states.pt")).unlink()
    with pytest.raises(ValueError, match=r"shards of 2 ranks .*got 1; missing are those of rank 1"):
        read_zero_folder(shards)


def test_a_damaged_shard_is_named(shards):
    shard = next(shards.glob("*zero_pp_rank_1_mp_rank_00_optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"zero_pp_rank_1_.*: not a readable weights file"):
        read_zero_folder(shards)


def test_shards_without_the_names_of_the_weights_are_refused(shards):
    for file in shards.glob("*model_states.pt"):
        file.unlink()
    with pytest.raises(ValueError, match=r"expected .*model_states\.pt, which names the weights"):
        read_zero_folder(shards)


def test_model_parallel_shards_are_refused(shards):
    shard = next(shards.glob("*zero_pp_rank_1_mp_rank_00_optim_states.pt"))
    shard.rename(shard.with_name(shard.name.replace("mp_rank_00", "mp_rank_01")))
    with pytest.raises(ValueError, match="expected one model-parallel rank"):
        read_zero_folder(shards)
