"""The one importer of deepspeed: ZeRO, mixed precision, and the fp32 weights behind them.

Everything else sees `TrainEngine`: call it, `backward`, `step`, and read or write full fp32
tensors by parameter name, whatever the ZeRO stage and the number of ranks.
"""

import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sat_udpdiff.config import Config
from sat_udpdiff.distributed import Place
from sat_udpdiff.parallel.tensor import WeightShares
from sat_udpdiff.sat_compat import model_parallel_group, mpu
from sat_udpdiff.training.optimizer import make_optimizer

MASTERS = "network"
"""Kind of tensor: the fp32 weights."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Kinds of tensor: the moments of AdamW."""

_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def to_deepspeed(config: Config, *, world_size: int, device_type: str = "cuda") -> dict[str, Any]:
    """The deepspeed dictionary of a configuration; nothing in it is written anywhere else.

    To deepspeed the ranks that share the tokens of a sample are data ranks like any others.
    """
    train, stage = config.train, config.train.zero_stage
    on_gpu = device_type == "cuda"
    data_size = world_size // config.parallel.tensor_size
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.accumulation_steps,
        "train_batch_size": train.micro_batch_size * train.accumulation_steps * data_size,
        "gradient_clipping": config.optimizer.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            # gloo has no streams to overlap on.
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": train.reduce_bucket_elements,
            "allgather_bucket_size": train.reduce_bucket_elements,
        },
        # A gradient that is not finite skips the step, as a loss that is not finite does.
        "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": train.precision == "fp16", "initial_scale_power": 16},
        "steps_per_print": sys.maxsize,
    }
    if train.offload != "none":
        host = {"device": "cpu", "pin_memory": on_gpu}
        result["zero_optimization"]["offload_optimizer"] = host
        # deepspeed's own AdamW for the CPU is compiled for minutes; torch's is the same.
        result["zero_force_ds_cpu_optimizer"] = False
        if train.offload == "weights":
            result["zero_optimization"]["offload_param"] = host
    if train.precision == "bf16" and train.accumulation_steps > 1 and stage == 2:
        # Sums of many bf16 gradients lose the small ones.
        result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result


class TrainEngine:
    """A deepspeed engine reduced to what training needs.

    Args:
        network: On its device, with its first weights, cut where the run cuts it; deepspeed casts
            it to the precision.
        config: Of the run.
        place: Of this rank; torch.distributed must be up.
        base_sha256: Fingerprint of the frozen weights, for the checkpoints.
    """

    def __init__(
        self, network: nn.Module, *, config: Config, place: Place, base_sha256: str = ""
    ) -> None:
        deepspeed = _import_deepspeed(place)
        self.base_sha256 = base_sha256
        is_cut = config.parallel.tensor_size > 1
        self._shares = WeightShares(model_parallel_group() if is_cut else None)
        self._num_parameters = self._shares.count(network)
        optimizer = make_optimizer(network, config=config.optimizer)
        settings = to_deepspeed(config, world_size=place.world_size, device_type=place.device.type)
        self._engine, *_ = deepspeed.initialize(
            model=network,
            optimizer=optimizer,
            config=settings,
            mpu=mpu if is_cut else None,
            dist_init_required=False,
        )
        # fp32 too: one NaN in a gradient would stay in the moments for ever.
        self._engine.optimizer.check_grad_overflow = True
        self._make_moments()

    @property
    def module(self) -> nn.Module:
        """The network, in the training precision."""
        return self._engine.module

    @property
    def num_parameters(self) -> int:
        """Trained numbers of the whole network; frozen ones are not among them."""
        return self._num_parameters

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that deepspeed keeps masters and moments of, by name."""
        named = self.module.named_parameters()
        return ((name, parameter) for name, parameter in named if parameter.requires_grad)

    def __call__(self, latents: Tensor, **kwargs: Tensor | None) -> Tensor:
        """Forward pass through deepspeed's hooks."""
        return self._engine(latents, **kwargs)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of one micro-batch's mean loss, divided by the accumulation steps.

        Args:
            loss: Scalar.
            is_last: The last micro-batch of the step; `step` must follow.
        """
        self._engine.backward(loss)
        if not is_last:
            self._engine.step()  # counts the micro-batch; the weights stay

    def step(self, *, lr: float, skip: bool = False) -> bool:
        """Clip the accumulated gradient once and update the weights.

        Args:
            lr: Learning rate of this step.
            skip: Drop the gradient and leave weights and moments as they are.

        Returns:
            Whether the weights moved; False too for a gradient that is not finite.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        with _forced_overflow(self._engine.optimizer) if skip else contextlib.nullcontext():
            self._engine.step()
        return not self._engine.optimizer.overflow

    def grad_norm(self) -> Tensor:
        """Global gradient norm of the last step, before clipping; no host sync."""
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float64, device=self._engine.device)

    def masters(self) -> list[Tensor]:
        """Flat fp32 weights that this rank's optimizer updates in place."""
        optimizer = self._engine.optimizer
        if hasattr(optimizer, "single_partition_of_fp32_groups"):  # ZeRO 1 and 2
            return list(optimizer.single_partition_of_fp32_groups)
        return list(optimizer.fp32_partitioned_groups_flat)  # ZeRO 3

    def gather(self, kind: str, *, keep: bool) -> dict[str, Tensor]:
        """Full fp32 tensors by name of each trained parameter, on the CPU; every rank must call it.

        Args:
            kind: MASTERS or one of MOMENTS.
            keep: False takes part in the communication and returns {}, so that only one rank
                needs the memory.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        kept: dict[str, Tensor] = {}
        for name, parameter in self._trained():
            if kind == MASTERS:
                full = safe_get_full_fp32_param(parameter)
            else:
                full = safe_get_full_optimizer_state(parameter, kind)
            if full is None:
                raise RuntimeError(f"deepspeed holds no {kind} for {name}")
            full = self._shares.join(name, full)
            if keep:
                kept[name] = full.detach().cpu().contiguous()
        return kept

    @torch.no_grad()
    def scatter(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """Set this rank's share of full fp32 tensors; the inverse of `gather`.

        Args:
            kind: MASTERS or one of MOMENTS.
            tensors: By parameter name; read one at a time.
        """
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, parameter in self._trained():
            value = self._shares.take(name, tensors[name]).to(parameter.device)
            if kind == MASTERS:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, kind)

    def counters(self) -> dict[str, float]:
        """AdamW's step count and, for fp16, the state of the loss scale."""
        counters = {"adam_step": float(self._states()[0]["step"])}
        scaler = self._engine.optimizer.loss_scaler
        present = [name for name in _SCALER_FIELDS if hasattr(scaler, name)]
        return counters | {name: float(getattr(scaler, name)) for name in present}

    def set_counters(self, counters: Mapping[str, float]) -> None:
        """Go on from the counters of a checkpoint."""
        for state in self._states():
            state["step"].fill_(counters["adam_step"])
        scaler = self._engine.optimizer.loss_scaler
        for name in _SCALER_FIELDS:
            if name in counters and hasattr(scaler, name):
                setattr(scaler, name, type(getattr(scaler, name))(counters[name]))

    def _make_moments(self) -> None:
        """Make AdamW's moments now and not in the first step, which links some of them too early.

        deepspeed looks for the moments of every parameter group when the first group has stepped.
        """
        optimizer = self._engine.optimizer
        is_fused = bool(optimizer.optimizer.defaults.get("fused"))
        for master in self.masters():
            # torch keeps the count of the fused kernel on the device.
            step = torch.zeros((), device=master.device if is_fused else "cpu")
            zeros = {kind: torch.zeros_like(master) for kind in MOMENTS}
            optimizer.optimizer.state[master] = {"step": step, **zeros}
        if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):  # ZeRO 1 and 2
            optimizer._lazy_init_hp_params_optimizer_state()

    def _states(self) -> list[dict[str, Any]]:
        optimizer = self._engine.optimizer.optimizer
        return [optimizer.state[master] for master in self.masters()]


@contextlib.contextmanager
def _forced_overflow(optimizer: Any) -> Iterator[None]:
    """Send the next step down deepspeed's own path for gradients that overflowed.

    That path drops every buffer in which ZeRO keeps gradients, whatever the stage and version.
    """

    def overflow(**_: Any) -> None:
        optimizer.overflow = True

    optimizer.check_overflow = overflow
    try:
        yield
    finally:
        del optimizer.check_overflow


def _import_deepspeed(place: Place) -> Any:
    """Import deepspeed so that it neither compiles anything nor fills the screen."""
    # A killed compile leaves a lock that hangs the next start; keep it away from other projects.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "udpdiff"
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache / f"torch_{torch.__version__}"))
    # It asks for this variable even where the process group was made without it.
    os.environ.setdefault("LOCAL_RANK", str(place.local_rank))
    if place.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # deepspeed's own calls; nothing that a user of this project could change.
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    _import_muon()
    if place.device.type == "cpu":
        from deepspeed.ops import __compatible_ops__

        # A collective for shared memory that would be compiled at the first start (half a minute).
        __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _import_muon() -> None:
    """Import an optimizer that ZeRO looks for in every run, without the functions it compiles.

    Nothing here uses it, and `torch.compile` takes a second of every start before it compiles.
    """
    from deepspeed.runtime import compiler

    compile_functions = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        with contextlib.suppress(ImportError):  # releases before it
            importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_functions
