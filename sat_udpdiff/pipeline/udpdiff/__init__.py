"""The classes, and their registration with diffusers.

diffusers resolves names of model_index.json among its own modules only: the pipeline's class in
`diffusers`, a component's in `diffusers.pipelines.<name>`. It imports nothing that a folder names,
so that no folder can run code; we enter our names ourselves, and whoever imported this package can
open our folders with `DiffusionPipeline.from_pretrained` too, from a disk or from the hub, and
without `trust_remote_code`. (diffusers also knows components by their module path; those it refuses
to take from the hub or to be passed to `from_pretrained`.)
"""

import sys

import diffusers

from sat_udpdiff.pipeline.udpdiff.output import UDPDiffPipelineOutput
from sat_udpdiff.pipeline.udpdiff.pipeline_udpdiff import UDPDiffPipeline
from sat_udpdiff.pipeline.udpdiff.transformer import UDPDiffTransformer3DModel

__all__ = ["UDPDiffPipeline", "UDPDiffPipelineOutput", "UDPDiffTransformer3DModel"]

# save_pretrained names a component by the folder of its module: `udpdiff`, this package.
setattr(diffusers.pipelines, __name__.rpartition(".")[2], sys.modules[__name__])
setattr(diffusers, UDPDiffPipeline.__name__, UDPDiffPipeline)
