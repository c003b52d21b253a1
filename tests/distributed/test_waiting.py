"""How long processes wait for each other, in whatever group."""

from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.distributed import distributed_c10d

from sat_udpdiff import distributed
from sat_udpdiff.distributed import init_distributed


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_groups_that_are_made_later_wait_as_long_as_the_first(backend, monkeypatch):
    asked = {}
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, timedelta(minutes=10))
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda _, **options: asked.update(options))
    monkeypatch.setattr(distributed, "_fill_environment", lambda *_, **__: None)
    init_distributed(device="cpu", timeout_minutes=31.0)
    assert asked["timeout"] == timedelta(minutes=31)
    assert distributed_c10d._get_default_timeout(dist.Backend(backend)) == timedelta(minutes=31)
