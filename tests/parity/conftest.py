"""The helpers of `test_network_parity.py`, as a fixture: tests are no package to import from."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def parity():
    """Its module: pairs of networks, inputs and how each is run."""
    path = Path(__file__).parent / "test_network_parity.py"
    spec = importlib.util.spec_from_file_location("network_parity", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
