"""What a small single-process training run keeps: weights, Adam moments, mean weights, step."""

import math
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def cosine_rate(step: int, *, steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Learning rate of a step: linear warm-up to `peak`, then a cosine down to `final`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


class SmallRun:
    """State of a run that goes on where its work folder ends.

    Args:
        network: what is trained.
        optimizer: Adam or AdamW over its parameters.
        ema_decay: ceiling of min(ema_decay, (1 + step) / (10 + step)).
        work: folder of the run; read here if it holds a state.
    """

    def __init__(
        self, network: nn.Module, *, optimizer: torch.optim.Optimizer, ema_decay: float, work: Path
    ):
        self.network, self.optimizer = network, optimizer
        self.mean = {name: value.clone() for name, value in network.state_dict().items()}
        self.step = 0
        self._ema_decay, self._path = ema_decay, work / "state.safetensors"
        if self._path.exists():
            self._restore()

    def update(self, loss: Tensor, *, rate: float, gradient_clipping: float) -> None:
        """One optimizer step, and the mean weights after it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clipping)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        decay = min(self._ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            self.mean[name].lerp_(value, 1.0 - decay)
        self.step += 1

    def save(self) -> None:
        """Write the state; the file is replaced only when the new one is whole."""
        state = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        state |= {f"mean.{k}": v for k, v in self.mean.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"adam.{index}.{k}": v for k, v in moments.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        staged = self._path.with_suffix(".part")
        save_file(state, staged, metadata={"step": str(self.step)})
        staged.replace(self._path)

    def _restore(self) -> None:
        with safe_open(self._path, framework="pt") as file:
            self.step = int(file.metadata()["step"])
        state = load_file(self._path)
        self.network.load_state_dict(_below(state, "network."))
        self.mean = _below(state, "mean.")
        adam = self.optimizer.state_dict()
        for name, value in _below(state, "adam.").items():
            index, moment = name.split(".")
            adam["state"].setdefault(int(index), {})[moment] = value
        self.optimizer.load_state_dict(adam)


def _below(state: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    return {name[len(head) :]: value for name, value in state.items() if name.startswith(head)}
