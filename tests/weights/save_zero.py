"""Writes a ZeRO checkpoint as any user of deepspeed would: a program for two ranks.

torchrun --nproc_per_node 2 tests/weights/save_zero.py FOLDER STAGE
"""

import os
import sys
import warnings

os.environ["DS_ACCELERATOR"] = "cpu"
warnings.simplefilter("ignore")

import deepspeed  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from deepspeed.ops import __compatible_ops__  # noqa: E402

from sat_udpdiff.config_io import load_config  # noqa: E402
from sat_udpdiff.model.transformer import build_network, initialise  # noqa: E402

__compatible_ops__["deepspeed_shm_comm"] = False


class Wrapped(torch.nn.Module):
    """The network where SAT has it, below `model.diffusion_model`, beside a frozen codec."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.diffusion_model = network
        self.first_stage_model = torch.nn.Linear(3, 5).requires_grad_(False)

    def forward(self, latents: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        return self.model.diffusion_model(latents, **conditions).square().mean()


def main(folder: str, stage: int, base: str) -> None:
    dist.init_process_group("gloo")
    config = load_config([base], ["model.dense_groups=1"])
    network = build_network(config.model, dtype=torch.float32, device="cpu")
    initialise(network, 3)
    decay = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decay}, {"params": others, "weight_decay": 0.0}]
    engine, *_ = deepspeed.initialize(
        model=Wrapped(network),
        optimizer=torch.optim.AdamW(groups, lr=1e-2),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 100_000},
        },
        dist_init_required=False,
    )
    size = (1, 3, 8, 4, 4)
    for step in range(2):
        torch.manual_seed(10 * step + dist.get_rank())
        loss = engine(
            torch.randn(size).bfloat16(),
            timesteps=torch.tensor([500]),
            text=torch.randn(1, 4, config.model.text_dim).bfloat16(),
            task=torch.tensor([step]),
        )
        engine.backward(loss)
        engine.step()
    engine.save_checkpoint(folder, client_state={"numpy": __import__("numpy").random.get_state()})
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
