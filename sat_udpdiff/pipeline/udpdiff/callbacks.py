"""What a caller is told after each sampling step, and may change."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

Callback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""(pipeline, step, timestep, tensors) -> tensors to go on with, those that changed."""


@dataclass
class SamplingState:
    """What a callback may see and change between two steps."""

    latents: Tensor
    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor


class StepCallback:
    """What the caller wants to be told after each step, and of which tensors."""

    def __init__(self, call: Callback | None, names: list[str] | None) -> None:
        self.call = call
        self.names = ["latents"] if names is None else list(names)
        if isinstance(call, PipelineCallback | MultiPipelineCallbacks):
            self.names = list(call.tensor_inputs)

    def __call__(self, pipeline: Any, state: SamplingState, *, step: int, timestep: Tensor) -> None:
        """Show the tensors, and take those that come back."""
        if self.call is None:
            return
        shown = {name: getattr(state, name) for name in self.names}
        changed = self.call(pipeline, step, timestep, shown)
        for field in fields(state):
            setattr(state, field.name, changed.get(field.name, getattr(state, field.name)))
