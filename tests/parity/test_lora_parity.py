"""Our adapters against diffusers and peft: files that one writes are read by the other."""

import dataclasses

import pytest
import torch
from diffusers import CogVideoXPipeline
from peft import LoraConfig as PeftConfig
from safetensors.torch import load_file, save_file

from sat_udpdiff.config import Config, InitConfig, LoraConfig
from sat_udpdiff.model.low_rank import PLACES, add_adapters, is_adapter, merge_adapters
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.pipeline import UDPDiffTransformer3DModel
from sat_udpdiff.pipeline.folder import transformer_config
from sat_udpdiff.weights.adapted import load_weights
from sat_udpdiff.weights.key_map import sat_to_diffusers
from sat_udpdiff.weights.lora_map import DENSE_FILE, LORA_FILE, write_lora

LAYERS = 3
BOUND = 5e-5


def randomise_adapters(network, *, marks, seed=9):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if any(mark in name for mark in marks):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / parameter.shape[1] ** 0.5)


@pytest.fixture
def make(parity):
    """Two networks of equal random weights; ours has random adapters."""

    def made(lora, *, positions="rotary", groups=0):
        ours, theirs = parity.make_pair(positions, torch.float32, groups=groups)
        add_adapters(ours, lora, seed=0)
        randomise_adapters(ours, marks=(".lora_A.", ".lora_B."))
        return ours, theirs

    return made


@pytest.fixture
def outputs(parity):
    def run(ours, theirs):
        inputs = parity.make_inputs(torch.float32, channels=theirs.config.in_channels)
        with torch.no_grad():
            return parity.run_ours(ours, *inputs), parity.run_theirs(theirs, *inputs)

    return run


def largest_difference(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
@pytest.mark.parametrize("groups", [0, 1])
@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(rank=8, alpha=12.0, targets=tuple(PLACES)),
        LoraConfig(rank=4),
        LoraConfig(rank=4, alpha=2.0, targets=("to_k", "ff.net.2")),
    ],
    ids=["all", "attention", "two"],
)
def test_diffusers_computes_the_same_from_our_file(
    positions, groups, lora, make, outputs, tmp_path
):
    ours, theirs = make(lora, positions=positions, groups=groups)
    _, plain = outputs(ours, theirs)
    write_lora(tmp_path, ours.state_dict(), lora=lora, model=ours.config)
    theirs.load_lora_adapter(tmp_path, weight_name=LORA_FILE)
    out, reference = outputs(ours, theirs)
    assert largest_difference(plain, reference) > 0.1
    assert largest_difference(out, reference) < BOUND


def test_a_pipeline_of_diffusers_loads_and_fuses_our_file(make, outputs, tmp_path):
    lora = LoraConfig(rank=8, alpha=4.0, targets=tuple(PLACES))
    ours, theirs = make(lora)
    write_lora(tmp_path, ours.state_dict(), lora=lora, model=ours.config)
    pipeline = CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=theirs, scheduler=None
    )
    pipeline.load_lora_weights(tmp_path)
    out, reference = outputs(ours, theirs)
    assert largest_difference(out, reference) < BOUND
    pipeline.fuse_lora()
    merged = sat_to_diffusers(merge_adapters(ours.state_dict(), lora))
    fused = {
        name.replace(".base_layer", ""): value
        for name, value in theirs.state_dict().items()
        if ".lora_" not in name
    }
    assert fused.keys() == merged.keys()
    assert max(largest_difference(fused[name], merged[name]) for name in fused) < 1e-5


def test_dense_channels_come_in_a_second_file(parity, tmp_path):
    """The pipeline's transformer holds the expanded base; training has moved its ends besides."""
    lora = LoraConfig(rank=4)
    model = dataclasses.replace(parity.CONFIG, task_signal="embedding")
    ours = parity.randomise(build_network(model, dtype=torch.float32, device="cpu"))
    theirs = UDPDiffTransformer3DModel(**arguments_of(model))
    theirs.load_state_dict(sat_to_diffusers(ours.state_dict()), strict=True)
    add_adapters(ours, lora, seed=0)
    randomise_adapters(ours, marks=(".lora_A.", ".lora_B."))
    with torch.no_grad():
        ours.get_parameter("mixins.patch_embed.proj.weight").mul_(1.3)
        ours.get_parameter("mixins.final_layer.linear.bias").add_(0.5)
        ours.get_parameter("mixins.task_embedding.table.weight").sub_(0.7)
    written = write_lora(tmp_path, ours.state_dict(), lora=lora, model=model)
    assert [path.name for path in written] == [LORA_FILE, DENSE_FILE]
    latents, text, timesteps = parity.make_inputs(torch.float32)
    task = torch.tensor([1, 0])

    def difference():
        with torch.no_grad():
            out = ours(latents, timesteps=timesteps, text=text, task=task)
            reference = theirs(latents, text, timesteps, task=task, return_dict=False)
        return largest_difference(out, reference[0])

    theirs.load_lora_adapter(tmp_path, weight_name=LORA_FILE)
    assert difference() > 0.1
    rest = theirs.load_state_dict(load_file(tmp_path / DENSE_FILE), strict=False)
    assert rest.unexpected_keys == []
    assert difference() < BOUND


def arguments_of(model):
    config = transformer_config(dataclasses.replace(Config(), model=model))
    return {name: value for name, value in config.items() if not name.startswith("_")}


@pytest.mark.parametrize("saver", ["pipeline", "transformer"])
def test_a_file_of_diffusers_is_read(saver, parity, outputs, tmp_path):
    """Adapters that peft made: diffusers' pipelines and its transformers save them differently."""
    lora = LoraConfig(
        rank=4,
        alpha=6.0,
        targets=("to_q", "to_v", "to_out.0", "ff.net.0.proj"),
        weights=str(tmp_path / "lora"),
    )
    plain, theirs = parity.make_pair("rotary", torch.float32, groups=0)
    base = tmp_path / "base.safetensors"
    save_file(plain.state_dict(), base)
    theirs.add_adapter(PeftConfig(r=4, lora_alpha=6, target_modules=list(lora.targets)))
    randomise_adapters(theirs, marks=(".lora_A.", ".lora_B."))
    if saver == "transformer":
        theirs.save_lora_adapter(tmp_path / "lora")
    else:
        layers = {
            name.replace(".default", ""): value
            for name, value in theirs.state_dict().items()
            if ".lora_" in name
        }
        settings = theirs.peft_config["default"].to_dict()
        settings["target_modules"] = sorted(settings["target_modules"])
        CogVideoXPipeline.save_lora_weights(
            tmp_path / "lora",
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=settings,
        )
    ours = build_network(plain.config, dtype=torch.float32, device="cpu")
    config = Config(model=plain.config, init=InitConfig(weights=str(base)), lora=lora)
    loaded = load_weights(ours, config)
    assert LORA_FILE in loaded.source
    out, reference = outputs(ours, theirs)
    assert largest_difference(outputs(plain, theirs)[0], reference) > 0.1
    assert largest_difference(out, reference) < BOUND
    assert all(p.requires_grad == is_adapter(name) for name, p in ours.named_parameters())


def test_the_file_says_what_it_was_made_with(make, tmp_path):
    """Rank and alpha reach peft's own settings; without them diffusers would take alpha = rank."""
    lora = LoraConfig(rank=4, alpha=10.0, targets=("to_q", "ff.net.2"))
    ours, theirs = make(lora)
    write_lora(tmp_path, ours.state_dict(), lora=lora, model=ours.config)
    theirs.load_lora_adapter(tmp_path, weight_name=LORA_FILE, adapter_name="ours")
    settings = theirs.peft_config["ours"]
    assert (settings.r, settings.lora_alpha) == (4, 10.0)
    assert set(settings.target_modules) == set(lora.targets)
    adapted = {
        name.removeprefix("transformer_blocks.0.").removesuffix(".lora_A.ours.weight")
        for name in theirs.state_dict()
        if name.startswith("transformer_blocks.0.") and ".lora_A." in name
    }
    assert adapted == {"attn1.to_q", "ff.net.2"}
