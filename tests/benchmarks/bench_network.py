"""Our block and network against diffusers' at equal shapes, forward and backward.

    python tests/benchmarks/bench_network.py [--repeats 9] [--device cpu] [--dtype fp32]

Both sides hold the same weights (through the key map) and are checked to agree before they are
timed. They take turns within one run; the table holds medians. `time` is the processor time of
this process on the CPU, which other programs on the machine disturb less than the clock, and the
clock on a GPU. `peak` is the most memory that tensors held at once beyond weights, gradients of
weights and inputs; `saved` is what the forward pass keeps for the backward pass. Ratios are ours
divided by theirs: below 1 ours is better.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sat_udpdiff.config import ModelConfig
from sat_udpdiff.config_io import load_config
from sat_udpdiff.model.positions import TokenGrid
from sat_udpdiff.model.transformer import UDPDiffTransformer, build_network, initialise
from sat_udpdiff.weights.key_map import sat_to_diffusers

CONFIGS = Path(__file__).parents[2] / "configs"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table."""

    name: str
    part: str
    config: ModelConfig
    frames: int
    height: int
    width: int


def of_family(name: str) -> ModelConfig:
    """The network of a family's value file."""
    return load_config([str(CONFIGS / f"{name}.yaml")]).model


def make_cases() -> list[Case]:
    """Return the tiny network, and blocks wide and long enough to be like the real ones."""
    tiny = dataclasses.replace(of_family("tiny"), task_signal="none")
    wide = dataclasses.replace(
        tiny,
        hidden_size=768,
        num_heads=12,
        num_layers=1,
        time_embed_dim=512,
        text_length=226,
        patch_size=2,
    )
    two = dataclasses.replace(
        of_family("2b"), num_layers=1, task_signal="none", activation_checkpointing="none"
    )
    clip = {"frames": 3, "height": 8, "width": 12}
    return [
        Case(name="block, tiny", part="block", config=tiny, **clip),
        Case(name="network, tiny, rotary", part="network", config=tiny, **clip),
        Case(
            name="network, tiny, sin-cos",
            part="network",
            config=dataclasses.replace(tiny, positions="sincos"),
            **clip,
        ),
        Case(name="block, d 768", part="block", config=wide, frames=3, height=32, width=48),
        Case(name="block, 2b", part="block", config=two, frames=1, height=32, width=48),
    ]


def build_pair(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device
) -> tuple[UDPDiffTransformer, CogVideoXTransformer3DModel]:
    """Ours and theirs with equal random weights."""
    ours = build_network(config, dtype=torch.float32, device="cpu")
    initialise(ours, 0)
    channels = config.latent_channels * (1 + config.dense_groups)
    theirs = CogVideoXTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.hidden_size // config.num_heads,
        in_channels=channels,
        out_channels=channels,
        time_embed_dim=config.time_embed_dim,
        text_embed_dim=config.text_dim,
        num_layers=config.num_layers,
        patch_size=config.patch_size,
        max_text_seq_length=config.text_length,
        use_rotary_positional_embeddings=config.positions == "rotary",
    )
    theirs.load_state_dict(sat_to_diffusers(ours.state_dict()))
    return ours.to(device, dtype), theirs.to(device, dtype)


def make_runs(
    case: Case, *, dtype: torch.dtype, device: torch.device
) -> dict[str, tuple[torch.nn.Module, Callable[[], Tensor]]]:
    """Networks and forward passes of both sides."""
    config = case.config
    ours, theirs = build_pair(config, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    rows, columns = (side // config.patch_size for side in (case.height, case.width))
    rotary = None
    if config.positions == "rotary":
        rotary = get_3d_rotary_pos_embed(
            config.hidden_size // config.num_heads,
            ((0, 0), (rows, columns)),
            (rows, columns),
            case.frames,
            device=device,
        )
    text = draw(1, config.text_length, config.text_dim)
    latents = draw(1, case.frames, 32, case.height, case.width)
    timesteps = torch.tensor([500], device=device)
    if case.part == "network":
        return {
            "ours": (ours, lambda: ours(latents, timesteps=timesteps, text=text)),
            "theirs": (
                theirs,
                lambda: theirs(
                    latents, text, timesteps, image_rotary_emb=rotary, return_dict=False
                )[0],
            ),
        }
    grid = TokenGrid(text=config.text_length, frames=case.frames, rows=rows, columns=columns)
    tokens = draw(1, grid.total, config.hidden_size).requires_grad_()
    text_tokens, video_tokens = (
        part.detach().clone().requires_grad_()
        for part in tokens.split([grid.text, grid.video], dim=1)
    )
    emb = draw(1, config.time_embed_dim)
    with torch.no_grad():
        ours(latents, timesteps=timesteps, text=text)  # hands SAT's layers their hooks

    def run_block() -> Tensor:
        layer = ours.get_mixin("adaln_layer").layer_forward
        return layer(tokens, emb, layer_id=torch.tensor(0), emb=emb, grid=grid)

    def run_their_block() -> Tensor:
        video, words = theirs.transformer_blocks[0](video_tokens, text_tokens, emb, rotary)
        return torch.cat([words, video], dim=1)

    return {"ours": (ours, run_block), "theirs": (theirs, run_their_block)}


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id_of(x) for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and id_of(x) not in self.seen | before:
                self._hold(x)
        self.peak = max(self.peak, self.held)
        return out

    def _hold(self, x: Tensor) -> None:
        storage, key = x.untyped_storage(), id_of(x)
        size = storage.nbytes()
        self.seen.add(key)
        self.held += size

        def release() -> None:
            self.held -= size
            self.seen.discard(key)

        weakref.finalize(storage, release)


def id_of(x: Tensor) -> int:
    """What tells one storage from another."""
    return x.untyped_storage()._cdata


def saved_bytes(network: torch.nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes kept by the forward pass for the backward pass, each storage once, weights not."""
    weights = {id_of(parameter) for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if id_of(x) not in weights:
            kept[id_of(x)] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = forward()
    total = sum(x.untyped_storage().nbytes() for x in kept.values())
    del out
    return total


def step(network: torch.nn.Module, forward: Callable[[], Tensor]) -> None:
    """One forward and backward pass; gradients of weights are kept allocated."""
    for parameter in network.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    forward().sum().backward()


def peak_bytes(network: torch.nn.Module, forward: Callable[[], Tensor]) -> int:
    """Most memory of a step beyond what was held before it."""
    gc.collect()
    if next(network.parameters()).is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(network, forward)
        return torch.cuda.max_memory_allocated() - before
    with PeakMemory() as memory:
        step(network, forward)
    return memory.peak


def seconds(network: torch.nn.Module, run: Callable[[], Any]) -> float:
    """Processor time on the CPU, time between two syncs on a GPU."""
    if next(network.parameters()).is_cuda:
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(
    case: Case, *, dtype: torch.dtype, device: torch.device, repeats: int
) -> dict[str, dict[str, float]]:
    """Measure both sides in turns; side -> quantity -> median."""
    runs = make_runs(case, dtype=dtype, device=device)
    with torch.no_grad():
        first, second = (forward() for _, forward in runs.values())
    bound = 0.1 if dtype == torch.bfloat16 else 1e-3
    difference = (first - second).abs().max().item()
    if difference > bound:
        raise RuntimeError(f"{case.name}: the two sides differ by {difference}")
    times: dict[str, dict[str, list[float]]] = {side: {"forward": [], "step": []} for side in runs}
    for side in runs:
        step(*runs[side])
    for repeat in range(repeats):
        for side in sorted(runs, reverse=repeat % 2 == 0):
            network, forward = runs[side]
            with torch.no_grad():
                times[side]["forward"].append(seconds(network, forward))
            times[side]["step"].append(seconds(network, partial(step, network, forward)))
    return {
        side: {name: statistics.median(values) for name, values in times[side].items()}
        | {"saved": saved_bytes(network, forward), "peak": peak_bytes(network, forward)}
        for side, (network, forward) in runs.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(
        f"torch {torch.__version__}, {device}, {arguments.dtype}, {torch.get_num_threads()} "
        f"threads, medians of {arguments.repeats}; ms and MiB as ours / diffusers = ratio\n"
    )
    columns = {
        "forward": ("forward ms", 1e3),
        "step": ("forward + backward ms", 1e3),
        "saved": ("saved MiB", 2**-20),
        "peak": ("peak MiB", 2**-20),
    }
    print("| case | tokens |", " | ".join(title for title, _ in columns.values()), "|")
    print("|---|---|" + "---|" * len(columns))
    for case in make_cases():
        if arguments.only not in case.name:
            continue
        result = measure(
            case, dtype=DTYPES[arguments.dtype], device=device, repeats=arguments.repeats
        )
        cells = []
        for key, (_, unit) in columns.items():
            ours, theirs = result["ours"][key], result["theirs"][key]
            cells.append(f"{ours * unit:.1f} / {theirs * unit:.1f} = **{ours / theirs:.2f}**")
        area = case.height * case.width // case.config.patch_size**2
        tokens = case.config.text_length + case.frames * area
        print(f"| {case.name} | {tokens} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
