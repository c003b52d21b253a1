"""UDPDiff as diffusers knows models: a folder, a transformer class and a pipeline class.

    from sat_udpdiff.pipeline import UDPDiffPipeline

    pipe = UDPDiffPipeline.from_pretrained(FOLDER)

`folder.py` writes such a folder and needs no diffusers; the classes are in `udpdiff/`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sat_udpdiff.pipeline.udpdiff import (
        UDPDiffPipeline,
        UDPDiffPipelineOutput,
        UDPDiffTransformer3DModel,
    )

__all__ = ["UDPDiffPipeline", "UDPDiffPipelineOutput", "UDPDiffTransformer3DModel"]


def __getattr__(name: str) -> Any:
    """Import the classes when they are asked for: diffusers' pipelines take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sat_udpdiff.pipeline import udpdiff

    return getattr(udpdiff, name)
