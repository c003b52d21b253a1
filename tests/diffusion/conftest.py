"""Fixtures of the diffusion tests."""

import jaxtyping
import pytest


@pytest.fixture
def as_in_production(monkeypatch: pytest.MonkeyPatch):
    """Without the annotation checks, which run under pytest only and would answer first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
