"""The memory that `train.py --plan` foretells against what real training takes, on the CPU.

    python tests/benchmarks/bench_memory.py [--ranks 1 2]

For each case real deepspeed processes on gloo train two steps (`live_memory.py`): eight layers of
256 on 1,200 tokens, from random latents. `counted` is the peak of all tensors that live at once, in
MB of 10^6 bytes; planned / counted is given for the whole and by phase. `resident` is how much the
peak of the process grew: it has the allocator's holes besides, and what was kept from earlier cases
hides what the next one takes; it is shown for completeness.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
SIZE = [
    "model.hidden_size=256", "model.num_heads=4", "model.num_layers=8", "model.patch_size=2",
    "data.num_frames=9", "data.height=128", "data.width=192", "train.micro_batch_size=1",
    "train.reduce_bucket_elements=1_000_000",
]  # fmt: skip
BF16, FULL, EMA = "train.precision=bf16", "model.activation_checkpointing=full", "ema.enabled=true"
SELECTIVE, TWICE = "model.activation_checkpointing=selective", "train.accumulation_steps=2"
SINCOS = "model.positions=sincos"
CASES = {
    "ZeRO 1, fp32": ["train.zero_stage=1"],
    "ZeRO 1, bf16, recomputed, EMA": ["train.zero_stage=1", BF16, FULL, EMA],
    "ZeRO 1, bf16, recomputed, 2 accumulated": ["train.zero_stage=1", BF16, FULL, TWICE],
    "ZeRO 2, fp32": ["train.zero_stage=2"],
    "ZeRO 2, fp32, recomputed": ["train.zero_stage=2", FULL],
    "ZeRO 2, fp32, sin-cos, EMA": ["train.zero_stage=2", SINCOS, EMA],
    "ZeRO 2, bf16": ["train.zero_stage=2", BF16],
    "ZeRO 2, bf16, recomputed": ["train.zero_stage=2", BF16, FULL],
    "ZeRO 2, bf16, recomputed, EMA": ["train.zero_stage=2", BF16, FULL, EMA],
    "ZeRO 2, bf16, half recomputed, 2 accumulated": ["train.zero_stage=2", BF16, SELECTIVE, TWICE],
    "ZeRO 3, fp32, recomputed": ["train.zero_stage=3", FULL],
    "ZeRO 3, bf16, recomputed, EMA": ["train.zero_stage=3", BF16, FULL, EMA],
}
# Its figures are dropped: libraries load in the first steps.
WARM_UP = ["train.zero_stage=2"]


def measure(ranks: int, folder: Path) -> list[dict]:
    """Results of all cases on `ranks` processes."""
    cases, result = folder / "cases.json", folder / f"result{ranks}.json"
    cases.write_text(json.dumps([SIZE + case for case in (WARM_UP, *CASES.values())]))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    program = str(Path(__file__).with_name("live_memory.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *launcher, program, str(cases), str(result)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(result.read_text())[1:]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print(f"torch {version('torch')}, deepspeed {version('deepspeed')}\n")
    names = ("total", "start", "passes", "step")
    print(
        "| case | ranks | counted MB | planned / counted |", *(f"{n} |" for n in names[1:]), end=""
    )
    print(" resident MB |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in options.ranks:
            for case, found in zip(CASES, measure(ranks, Path(folder)), strict=True):
                counted, planned = found["counted"], found["planned"]
                cells = [f"{planned[name] / counted[name]:.2f}" for name in names]
                total = f"{counted['total'] / 1e6:.0f}"
                resident = f"{found['resident'] / 1e6:.0f}"
                print("|", " | ".join([case, str(ranks), total, *cells, resident]), "|", flush=True)


if __name__ == "__main__":
    main()
