"""What comes with diffusers: LoRA, and the lines of the README."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sat_udpdiff.config import LoraConfig
from sat_udpdiff.model.low_rank import add_adapters, is_trained
from sat_udpdiff.model.transformer import build_network
from sat_udpdiff.pipeline import UDPDiffPipeline
from sat_udpdiff.weights.load import load_network_weights
from sat_udpdiff.weights.lora_map import DENSE_FILE, write_lora

README = Path(__file__).parents[2] / "README.md"


def latents_of(pipeline, **keywords):
    return pipeline(
        "a red disc moves left",
        "depth",
        num_inference_steps=1,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **keywords,
    ).dense


def test_lora_is_saved_loaded_scaled_and_unloaded(exported, pipeline, tmp_path):
    peft = pytest.importorskip("peft")
    plain = latents_of(pipeline)
    pipeline.transformer.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in pipeline.transformer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    trained = latents_of(pipeline)
    assert (trained - plain).abs().max() > 1e-2
    layers = peft.get_peft_model_state_dict(pipeline.transformer)
    UDPDiffPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)

    fresh = exported.open()
    fresh.load_lora_weights(tmp_path)
    assert (latents_of(fresh) - trained).abs().max() < 1e-5
    assert (latents_of(fresh, attention_kwargs={"scale": 0.0}) - plain).abs().max() < 1e-5
    fresh.unload_lora_weights()
    assert torch.equal(latents_of(fresh), plain)


def test_what_lora_trained_as_a_whole_is_loaded_with_the_adapters(exported, tmp_path):
    pytest.importorskip("peft")
    lora = LoraConfig(rank=2)
    network = build_network(exported.config.model, dtype=torch.float32, device="cpu")
    load_network_weights(network, exported.config)
    add_adapters(network, lora, seed=0)
    torch.manual_seed(0)
    state = {
        name: torch.randn_like(value)
        for name, value in network.state_dict().items()
        if is_trained(name, exported.config.model)
    }
    write_lora(tmp_path, state, lora=lora, model=exported.config.model)
    fresh = exported.open()
    fresh.load_lora_weights(tmp_path)
    own = fresh.transformer.state_dict()
    whole = load_file(tmp_path / DENSE_FILE)
    assert len(whole) == 5
    assert all(torch.equal(own[name], value) for name, value in whole.items())

    del whole["proj_out.bias"]
    whole["strange.weight"] = torch.zeros(1)
    save_file(whole, tmp_path / DENSE_FILE)
    with pytest.raises(ValueError, match=r"dense_weights\.safetensors: .*strange\.weight"):
        exported.open().load_lora_weights(tmp_path)


def test_the_lines_of_the_readme_run(exported, tmp_path, monkeypatch, capsys):
    section = README.read_text().split("## From diffusers")[1]
    (lines,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(lines.replace("FOLDER", str(exported.folder)), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip().endswith("(1, 9, 32, 48)")
    with Image.open(tmp_path / "video.gif") as video, Image.open(tmp_path / "dense.png") as dense:
        assert video.n_frames == 9
        assert dense.size == (48, 32)
