"""What a number was computed with."""

from importlib import metadata

import pytest
import torch

from sat_udpdiff.evaluation.machine import machine_facts


def test_a_package_under_another_name_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV comes in four wheels, any of which will do."""
    version = metadata.version

    def without_opencv(name: str) -> str:
        if name == "opencv-python-headless":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_opencv)
    facts = machine_facts(torch.device("cpu"))
    assert facts["opencv-python-headless"] is None
    assert facts["torch"] == version("torch")
