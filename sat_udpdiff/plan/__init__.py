"""What a run will be, without starting it: `train.py --plan` and `--dry-run`.

Nothing is allocated: the networks lie on the meta device. To read: `sizes` (tokens, parameters,
files), `zero` (what deepspeed keeps), `activations`, `frozen` (codec and text encoder), `memory`
(all of it on one GPU), `work` (FLOPs and time), `offload`, `changes` (other settings), `advice`
(which of them help, tried), `report`. Beyond one machine: `cluster` (nodes, network, disk,
failures), `traffic` (collectives of a step), `network` (their bytes on the wire, and time),
`survival` (saves and failures), `scaling`, `scale_report`.
"""

from sat_udpdiff.plan.dry_run import dry_run_report
from sat_udpdiff.plan.machine import Machine
from sat_udpdiff.plan.memory import Memory, estimate_memory
from sat_udpdiff.plan.report import plan_report
from sat_udpdiff.plan.sizes import count_parameters, derive_sizes

__all__ = [
    "Machine",
    "Memory",
    "count_parameters",
    "derive_sizes",
    "dry_run_report",
    "estimate_memory",
    "plan_report",
]
