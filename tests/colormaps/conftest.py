"""The module of noisy clips, as a fixture: tests are no package, so it cannot be imported."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def noisy():
    """`noisy_clips.py`."""
    path = Path(__file__).parent / "noisy_clips.py"
    spec = importlib.util.spec_from_file_location("noisy_clips", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["noisy_clips"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
