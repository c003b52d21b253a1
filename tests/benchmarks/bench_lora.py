"""A step of LoRA training against a step of all weights, and against diffusers with peft.

    python tests/benchmarks/bench_lora.py [--repeats 9] [--rank 64] [--device cpu] [--dtype fp32]

Forward and backward of the 16-channel network, adapters on the four linears of attention. The three
hold the same weights, adapters too, and take turns within one run. Quantities are those of
`bench_network.py`: processor time (clock on a GPU), `saved` for the backward pass, `peak` beyond
weights, gradients and inputs. `trained` counts what gets gradients, moments and a place in
checkpoints.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from functools import partial

import torch
from bench_network import DTYPES, Case, make_cases, peak_bytes, saved_bytes, seconds, step
from bench_network import build_pair as build_plain_pair
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from peft import LoraConfig as PeftConfig
from torch import Tensor

from sat_udpdiff.config import LoraConfig, ModelConfig
from sat_udpdiff.model.low_rank import add_adapters, is_adapter
from sat_udpdiff.model.transformer import UDPDiffTransformer
from sat_udpdiff.weights.lora_map import adapter_names

Run = tuple[torch.nn.Module, Callable[[], Tensor]]
SIDES = ("all weights", "adapters", "diffusers, peft")


def cases() -> list[Case]:
    """Whole networks with 16 channels; the wide ones have one layer."""
    found = [case for case in make_cases() if case.name != "network, tiny, sin-cos"]
    return [
        dataclasses.replace(
            case,
            part="network",
            name=case.name.replace("block", "one layer"),
            config=dataclasses.replace(case.config, dense_groups=0),
        )
        for case in found
        if case.name != "block, tiny"
    ]


def give_adapters(network: UDPDiffTransformer, theirs: torch.nn.Module, lora: LoraConfig) -> None:
    """The same random adapters for both."""
    add_adapters(network, lora, seed=0)
    generator = torch.Generator().manual_seed(2)
    theirs.requires_grad_(False)
    theirs.add_adapter(
        PeftConfig(r=lora.rank, lora_alpha=lora.rank, target_modules=[*lora.targets])
    )
    names = adapter_names(lora, num_layers=network.config.num_layers)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if is_adapter(name):
                drawn = torch.randn(parameter.shape, generator=generator) / lora.rank
                parameter.copy_(drawn)
                their_name = names[name].removeprefix("transformer.")
                their_name = their_name.removesuffix("weight") + "default.weight"
                theirs.get_parameter(their_name).copy_(drawn)


def make_runs(
    case: Case, *, lora: LoraConfig, dtype: torch.dtype, device: torch.device
) -> dict[str, Run]:
    """Networks and forward passes of the three sides."""
    whole, _ = build_plain_pair(case.config, dtype=dtype, device=device)
    ours, theirs = build_plain_pair(case.config, dtype=dtype, device=device)
    give_adapters(ours, theirs, lora)
    generator = torch.Generator().manual_seed(1)
    latents, text = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in (
            (1, case.frames, 16, case.height, case.width),
            (1, case.config.text_length, case.config.text_dim),
        )
    )
    timesteps = torch.tensor([500], device=device)
    rotary = _rotary(case.config, case=case, device=device)

    def run_theirs() -> Tensor:
        return theirs(latents, text, timesteps, image_rotary_emb=rotary, return_dict=False)[0]

    def run_ours(network: UDPDiffTransformer) -> Tensor:
        return network(latents, timesteps=timesteps, text=text)

    runs = (whole, partial(run_ours, whole)), (ours, partial(run_ours, ours)), (theirs, run_theirs)
    return dict(zip(SIDES, runs, strict=True))


def _rotary(
    config: ModelConfig, *, case: Case, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    if config.positions != "rotary":
        return None
    rows, columns = (side // config.patch_size for side in (case.height, case.width))
    head, grid = config.hidden_size // config.num_heads, (rows, columns)
    return get_3d_rotary_pos_embed(head, ((0, 0), grid), grid, case.frames, device=device)


def measure(runs: dict[str, Run], *, repeats: int, bound: float) -> dict[str, dict[str, float]]:
    """Measure the sides in turns; side -> quantity -> median."""
    with torch.no_grad():
        _, ours, theirs = (forward() for _, forward in runs.values())
    if (difference := (ours - theirs).abs().max().item()) > bound:
        raise RuntimeError(f"adapted networks differ by {difference}")
    times: dict[str, list[float]] = {side: [] for side in runs}
    for side in runs:
        step(*runs[side])
    for _ in range(repeats):
        for side, (network, forward) in runs.items():
            times[side].append(seconds(network, partial(step, network, forward)))
    return {
        side: {
            "step": statistics.median(times[side]),
            "saved": saved_bytes(network, forward),
            "peak": peak_bytes(network, forward),
            "trained": sum(p.numel() for p in network.parameters() if p.requires_grad),
        }
        for side, (network, forward) in runs.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    arguments = parser.parse_args()
    device, lora = torch.device(arguments.device), LoraConfig(rank=arguments.rank)
    print(
        f"torch {torch.__version__}, {device}, {arguments.dtype}, {torch.get_num_threads()} "
        f"threads, rank {lora.rank}, medians of {arguments.repeats}\n"
    )
    print("| case | side | step ms | saved MiB | peak MiB | trained |")
    print("|---|---|---|---|---|---|")
    for case in cases():
        runs = make_runs(case, lora=lora, dtype=DTYPES[arguments.dtype], device=device)
        bound = 0.1 if arguments.dtype == "bf16" else 1e-3
        found = measure(runs, repeats=arguments.repeats, bound=bound)
        first = found[SIDES[0]]["step"]
        for side, values in found.items():
            print(
                f"| {case.name} | {side} | {values['step'] * 1e3:.1f} "
                f"({values['step'] / first:.2f}) | {values['saved'] * 2**-20:.1f} "
                f"| {values['peak'] * 2**-20:.1f} | {values['trained']:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
