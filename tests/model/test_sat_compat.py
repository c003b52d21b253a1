"""SAT in a process that prepared nothing for it."""

import os
import subprocess
import sys
import textwrap

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def run_python(code):
    environment = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_a_bare_process_builds_and_runs_a_network():
    """No variables, no group, no triton; the random state is untouched and nothing is printed."""
    done = run_python(
        """
        import importlib.util, sys
        import torch
        import torch.distributed as dist

        before = torch.random.get_rng_state()
        from sat_udpdiff.config import ModelConfig
        from sat_udpdiff.model.transformer import build_network, initialise

        assert not dist.is_initialized()
        config = ModelConfig(num_layers=2, hidden_size=64, num_heads=1, text_dim=128)
        network = build_network(config, dtype=torch.float32, device="cpu")
        initialise(network, 0)
        assert torch.equal(before, torch.random.get_rng_state())
        assert dist.get_world_size() == 1
        out = network(
            torch.zeros(1, 1, 32, 4, 4),
            timesteps=torch.tensor([0]),
            text=torch.zeros(1, 2, 128),
            task=torch.tensor([0]),
        )
        out.sum().backward()

        from sat.model.position_embedding import FastRotaryEmbedding
        if importlib.util.find_spec("triton") is None:
            assert "triton" not in sys.modules
            try:
                FastRotaryEmbedding(8)
            except ImportError as error:
                assert "triton" in str(error)
            else:
                raise AssertionError("the stand-in must refuse to be used")

        # A group that ended takes SAT's groups with it; the next network needs new ones.
        dist.destroy_process_group()
        build_network(config, dtype=torch.float32, device="cpu")
        assert dist.is_initialized()
        """
    )
    assert done.returncode == 0, done.stderr
    assert "[INFO]" not in done.stderr


def test_a_group_that_exists_is_used():
    done = run_python(
        """
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        group = dist.group.WORLD
        from sat_udpdiff.config import ModelConfig
        from sat_udpdiff.model.transformer import build_network

        config = ModelConfig(num_layers=2, hidden_size=64, num_heads=1, text_dim=128)
        build_network(config, dtype=torch.float32, device="cpu")
        assert dist.group.WORLD is group
        """
    )
    assert done.returncode == 0, done.stderr
