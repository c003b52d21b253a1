"""Who works with whom, in numbers: no process is started."""

from itertools import product
from pathlib import Path

import pytest
import torch

from sat_udpdiff.config import ConfigError, ParallelConfig
from sat_udpdiff.config_io import load_config
from sat_udpdiff.distributed import Place
from sat_udpdiff.model.positions import TokenGrid
from sat_udpdiff.parallel.layout import lay_out
from sat_udpdiff.parallel.sequence import split_evenly
from sat_udpdiff.parallel.tensor import Cut, cut_of


def place(rank: int, world_size: int) -> Place:
    cpu = torch.device("cpu")
    return Place(rank=rank, world_size=world_size, local_rank=rank, device=cpu, backend="gloo")


def layouts(world_size: int, *, tensor: int = 1, sequence: int = 1):
    parallel = ParallelConfig(tensor_size=tensor, sequence_size=sequence)
    return [lay_out(parallel, place=place(rank, world_size)) for rank in range(world_size)]


def test_without_parallel_sizes_every_process_is_a_data_rank():
    assert [layout.at.data for layout in layouts(3)] == [0, 1, 2]
    assert all(layout.counts and layout.sizes.data == 3 for layout in layouts(3))


def test_tensor_ranks_are_neighbours_then_sequence_ranks_then_data_ranks():
    found = [(x.at.data, x.at.sequence, x.at.tensor) for x in layouts(12, tensor=2, sequence=3)]
    assert found == list(product(range(2), range(3), range(2)))


@pytest.mark.parametrize(("tensor", "sequence"), [(1, 4), (4, 1), (2, 2)])
def test_one_process_of_those_with_the_same_samples_counts_them(tensor, sequence):
    found = layouts(8, tensor=tensor, sequence=sequence)
    assert [layout.at.data for layout in found if layout.counts] == [0, 1]
    assert {layout.sizes.data for layout in found} == {2}


@pytest.mark.parametrize("axis", ["data", "guidance", "sequence", "tensor"])
def test_groups_along_an_axis_differ_in_it_alone(axis):
    parallel = ParallelConfig(tensor_size=2, sequence_size=3)
    found = [lay_out(parallel, place=place(rank, 24), guidance_size=2) for rank in range(24)]
    for layout in found:
        peers = layout.peers(axis)
        assert layout.rank in peers
        others = [found[rank].at._asdict() for rank in peers]
        assert [other.pop(axis) for other in others] == list(range(layout.sizes._asdict()[axis]))
        assert all(other == others[0] for other in others)


@pytest.mark.parametrize(("tensor", "sequence"), [(1, 2), (2, 1), (2, 2)])
def test_marks_tell_whether_those_that_share_samples_have_the_same(tensor, sequence):
    found = layouts(8, tensor=tensor, sequence=sequence)
    keys = [[f"clip {layout.at.data}", "another"] for layout in found]

    def total():
        return sum(layout.mark(own) for layout, own in zip(found, keys, strict=True))

    assert total() == 0
    for rank in range(8):
        keys[rank][0] += " of a damaged disk"
        assert total() != 0
        keys[rank][0] = f"clip {found[rank].at.data}"
    assert all(layout.mark(["own"]) == 0 for layout in layouts(3))


def test_all_that_work_on_a_sample_are_neighbours():
    parallel = ParallelConfig(tensor_size=2, sequence_size=2)
    layout = lay_out(parallel, place=place(10, 16), guidance_size=2)
    assert layout.peers("guidance", "sequence", "tensor") == list(range(8, 16))
    assert (layout.at.data, layout.counts) == (1, False)


def test_samples_are_dealt_out_to_data_ranks():
    here = place(5, 8)
    dealt = lay_out(ParallelConfig(sequence_size=2), place=here).data_place(here)
    assert (dealt.rank, dealt.world_size, dealt.device) == (2, 4, here.device)


def test_a_world_size_that_does_not_fit_is_refused_with_all_numbers():
    expected = "world size 6 is not tensor 2 x sequence 2 x data n; start a multiple of 4 processes"
    with pytest.raises(ConfigError, match=expected):
        layouts(6, tensor=2, sequence=2)
    expected = "sample: world size 3 is not tensor 1 x sequence 1 x guidance 2 x .*guidance_size"
    with pytest.raises(ConfigError, match=expected):
        lay_out(ParallelConfig(), place=place(0, 3), guidance_size=2, section="sample")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["parallel.sequence_size=5"],
            r"to divide model.num_heads=48 \(1, 2, 3, 4, 6, 8, 12, 16, 24, 48\), got tensor 1 x",
        ),
        (
            ["model.num_heads=30", "model.hidden_size=1920", "parallel.sequence_size=4"],
            r"num_heads=30 \(1, 2, 3, 5, 6, 10, 15, 30\), got tensor 1 x sequence 4",
        ),
        (
            ["parallel.sequence_size=16", "parallel.tensor_size=2"],
            r"to divide model.num_heads=48 \(.*\), got tensor 2 x sequence 16",
        ),
        (["sample.sequence_size=5"], "sample.sequence_size: expected tensor_size x sequence_size"),
        (["sample.tensor_size=5"], "sample.tensor_size: expected tensor_size x sequence_size"),
        (["sample.guidance_size=3"], "sample.guidance_size: expected 1 or 2, got 3"),
        (["train.offload=weights"], "train.offload: expected none or optimizer with train.zero_st"),
        (["parallel.sequence_size=0"], "parallel.sequence_size: expected at least 1, got 0"),
        (
            ["parallel.tensor_size=2", "lora.rank=4"],
            "lora.rank: expected 0 with parallel.tensor_size above 1: .* parallel.sequence_size",
        ),
        (["parallel.tensor_size=2", "train.zero_stage=3"], "train.zero_stage: expected 1 or 2"),
        (
            [
                "parallel.sequence_size=2",
                "validation.every_steps=5",
                "validation.prompts=[a red disc]",
            ],
            "validation.prompts: expected none with several processes per sample",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config([], overrides)


@pytest.mark.parametrize(
    ("family", "sizes"), [("5b", (2, 3, 4, 6, 8, 12, 16)), ("2b", (2, 3, 5, 6, 10, 15))]
)
def test_the_heads_of_the_released_networks_can_be_shared(family, sizes):
    base = str(Path(__file__).parents[2] / "configs" / f"{family}.yaml")
    for size in sizes:
        load_config([base], [f"parallel.sequence_size={size}", f"sample.sequence_size={size}"])


def test_runs_of_tokens_differ_by_one_at_most_and_leave_none_out():
    borders = split_evenly(17_776, parts=3)
    assert borders == [0, 5925, 11850, 17776]


def test_a_grid_knows_which_tokens_are_here():
    whole = TokenGrid(text=5, frames=2, rows=2, columns=2)
    assert (whole.here, whole.text_here) == (slice(0, 13), 5)
    parts = [(0, 4), (4, 8), (8, 13)]
    found = [TokenGrid(text=5, frames=2, rows=2, columns=2, part=part) for part in parts]
    assert [grid.text_here for grid in found] == [4, 1, 0]
    assert [grid.total for grid in found] == [13, 13, 13]


@pytest.mark.parametrize("cut", [Cut(dim=0), Cut(dim=1), Cut(dim=0, parts=3)])
def test_the_shares_of_a_weight_make_it_whole(cut):
    whole = torch.arange(72.0).view(12, 6)
    shares = [cut.take(whole, rank=rank, size=2) for rank in range(2)]
    assert cut.join(shares).equal(whole)


def test_a_share_of_queries_keys_and_values_has_heads_of_each():
    whole = torch.arange(12.0)  # four rows each of queries, keys and values
    assert Cut(dim=0, parts=3).take(whole, rank=1, size=2).tolist() == [2, 3, 6, 7, 10, 11]


def test_weights_of_layers_are_cut_and_others_are_not():
    assert cut_of("transformer.layers.3.attention.query_key_value.bias") == Cut(dim=0, parts=3)
    assert cut_of("transformer.layers.11.mlp.dense_4h_to_h.weight") == Cut(dim=1)
    for whole in (
        "transformer.layers.3.mlp.dense_4h_to_h.bias",
        "transformer.layers.3.input_layernorm.weight",
        "transformer.final_layernorm.weight",
        "mixins.adaln_layer.query_layernorm_list.3.weight",
    ):
        assert cut_of(whole) is None
