"""A whole network becomes this process's share of it."""

from sat_udpdiff.model.transformer import SEQUENCE_MIXIN, UDPDiffTransformer
from sat_udpdiff.parallel.layout import Layout
from sat_udpdiff.parallel.sequence import SequenceParallel
from sat_udpdiff.parallel.tensor import cut_network
from sat_udpdiff.sat_compat import ensure_model_parallel


def share_out(network: UDPDiffTransformer, *, layout: Layout) -> None:
    """Share weights and tokens with the other processes of `layout`, which all call this.

    Args:
        network: Whole, with the same weights on every process.
        layout: Of this process; without sizes above 1 nothing happens.
    """
    if layout.sizes.tensor > 1:
        ensure_model_parallel(layout.sizes.tensor)
        cut_network(network)
    if layout.sizes.sequence > 1:
        network.add_mixin(SEQUENCE_MIXIN, SequenceParallel(layout.make_group("sequence")))
