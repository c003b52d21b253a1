"""Key sets of full-size checkpoints, by shape alone: SAT's list, diffusers' classes, and ours."""

import hashlib

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

from sat_udpdiff.config_io import load_config
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.pipeline.folder import transformer_config
from sat_udpdiff.pipeline.udpdiff import UDPDiffTransformer3DModel
from sat_udpdiff.weights.codec_map import check_codec, codec_to_diffusers, codec_to_sat
from sat_udpdiff.weights.key_map import (
    SAT_UNUSED_POSITIONS,
    is_ignored,
    strip_sat_prefix,
    to_diffusers,
    to_sat,
)
from sat_udpdiff.weights.load import fit
from sat_udpdiff.weights.recognise import recognise
from sat_udpdiff.weights.sources import StoredNetwork
from sat_udpdiff.weights.stored import store_all
from tests.weights.synthetic_release import ROOT, sat_state

# Of the codec in SAT's code at tag v1.0, encoder and decoder: the sorted names, one per line.
SAT_CODEC_KEYS = "860e422583ebd13232c7805588020b7b8a01781318379b6c594c91d808ec3cf5"
FAMILIES = ("tiny", "2b", "5b", "1.5-5b")


def config(family, task="multitask"):
    return load_config([str(ROOT / "configs" / f"{name}.yaml") for name in (family, task)])


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def shapes_of(state):
    return {name: value.shape for name, value in state.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["multitask", "segmentation", "baseline"])
def test_a_release_has_the_keys_of_diffusers_classes_and_comes_back(family, task):
    made = config(family, task)
    release = strip_sat_prefix(sat_state(made, torch.bfloat16))
    theirs = to_diffusers(release)
    ours = made.model.dense_groups > 0
    kind = UDPDiffTransformer3DModel if ours else CogVideoXTransformer3DModel
    with torch.device("meta"):
        network = kind.from_config(transformer_config(made))
    assert shapes_of(theirs) == shapes(network)
    back = to_sat(theirs)
    assert shapes_of(back) == shapes(build_network(made.model, dtype=torch.float32, device="meta"))
    assert {key for key in release if not is_ignored(key)} == back.keys()


@pytest.mark.parametrize(
    ("family", "layer_keys", "others"),
    [
        # The list in SAT: per layer 2 + 4 (norms of q and k) + 4 (norms) + 4 + 4; the ends are 16.
        ("2b", 18, {"mixins.pos_embed.pos_embedding": (1, 17776, 1920)}),
        (
            "5b",
            18,
            {
                "mixins.pos_embed.freqs_sin": (17550, 64),
                "mixins.pos_embed.freqs_cos": (17550, 64),
                SAT_UNUSED_POSITIONS: (64, 3072),
            },
        ),
    ],
)
def test_the_releases_for_sat_have_these_keys(family, layer_keys, others):
    release = shapes_of(sat_state(config(family, "baseline"), torch.bfloat16))
    prefix = "model.diffusion_model."
    assert all(name.startswith(prefix) for name in release)
    model = config(family).model
    assert len(release) == layer_keys * model.num_layers + 16 + len(others)
    assert {name: release[prefix + name] for name in others} == others
    d = model.hidden_size
    assert release[f"{prefix}mixins.adaln_layer.adaLN_modulations.7.1.weight"] == (12 * d, 512)
    assert release[f"{prefix}transformer.layers.7.attention.query_key_value.weight"] == (3 * d, d)
    assert release[f"{prefix}mixins.final_layer.linear.weight"] == (64, d)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_recognised_and_expanded(family):
    state = strip_sat_prefix(sat_state(config(family, "baseline"), torch.bfloat16))
    for names in (state, to_diffusers(state)):
        facts = recognise(names)
        assert (facts.family, facts.in_channels, facts.out_channels) == (family, 16, 16)
        assert not facts.has_task_table
    dense = strip_sat_prefix(sat_state(config(family), torch.bfloat16))
    for names in (dense, to_diffusers(dense)):
        assert recognise(names).has_task_table
        assert recognise(names).out_channels == 32
    stored = StoredNetwork(source=ROOT, form="sat", facts=recognise(state), state=state)
    assert shapes_of(fit(stored, config=config(family), expand=True)) == {
        key: value for key, value in shapes_of(dense).items() if not is_ignored(key)
    }


def codec():
    with torch.device("meta"):
        made = AutoencoderKLCogVideoX()
    return made.state_dict()


def test_the_codec_has_the_436_keys_of_sat_and_they_come_back():
    theirs = store_all(codec())
    sat = codec_to_sat(theirs)
    assert len(sat) == 436
    assert hashlib.sha256("\n".join(sorted(sat)).encode()).hexdigest() == SAT_CODEC_KEYS
    back = codec_to_diffusers(sat)
    check_codec(back, expected={key: tuple(value.shape) for key, value in codec().items()})
    assert all(back[key] is theirs[key] for key in theirs)
    # Named in the published table of both.
    assert (
        sat["decoder.up.3.block.0.norm1.conv_y.conv.weight"]
        is (theirs["decoder.up_blocks.0.resnets.0.norm1.conv_y.conv.weight"])
    )
    assert (
        sat["encoder.mid.block_2.conv1.conv.bias"]
        is (theirs["encoder.mid_block.resnets.1.conv1.conv.bias"])
    )


def test_the_codec_of_a_checkpoint_with_everything_in_it_is_found():
    sat = codec_to_sat(store_all(codec()))
    whole = {f"first_stage_model.{key}": value for key, value in sat.items()}
    whole["model.diffusion_model.time_embed.0.weight"] = sat["encoder.conv_in.conv.bias"]
    whole["first_stage_model.loss.logvar"] = sat["encoder.conv_in.conv.bias"]
    assert codec_to_diffusers(whole).keys() == codec().keys()


def test_every_wrong_key_of_a_codec_is_named():
    state = codec_to_diffusers(codec_to_sat(store_all(codec())))
    expected = {key: value.shape for key, value in state.items()}
    for level in (0, 1):
        del state[f"encoder.down_blocks.{level}.resnets.0.conv1.conv.weight"]
    state["encoder.conv_in.conv.weight"] = state["encoder.conv_in.conv.bias"]
    state["extra"] = state["encoder.conv_in.conv.bias"]
    with pytest.raises(ValueError, match="not the weights of the video codec") as caught:
        check_codec(state, expected=expected)
    message = str(caught.value)
    assert "2 missing keys: encoder.down_blocks.{0-1}.resnets.0.conv1.conv.weight" in message
    assert "1 unexpected key: extra" in message
    assert "1 mis-shaped key: encoder.conv_in.conv.weight" in message
