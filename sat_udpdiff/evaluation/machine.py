"""What a number was computed with."""

import os
import platform
from importlib import metadata

import torch

from sat_udpdiff.evaluation.measure import Fact

_PACKAGES = ("torch", "numpy", "scipy", "opencv-python-headless", "av", "transformers", "diffusers")


def machine_facts(device: torch.device) -> dict[str, Fact]:
    """Versions and hardware, by name."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": str(device),
        "gpu": gpu,
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    """None where it is not installed under this name, as another wheel of OpenCV is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """Linux tells it in a file only."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
