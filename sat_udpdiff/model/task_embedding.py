"""The task embedding of the paper, eq. (1): t_d = e_d(d) + e_t(t)."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn

from sat_udpdiff.config import TASKS, ModelConfig
from sat_udpdiff.sat_compat import BaseMixin

TASK_TABLE_KEY = "mixins.task_embedding.table.weight"
"""Name of the table in a state dict; shape (2, time_embed_dim)."""


class TaskEmbedding(BaseMixin):
    """A learned row per task (0 segmentation, 1 depth), added to the time embedding.

    The rows start at zero, where the network is exactly the one without a table; they still learn,
    since the modulations that they feed are not zero.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(len(TASKS), config.time_embed_dim)

    def add_task(
        self, emb: Float[Tensor, "b e"], *, task: Int64[Tensor, " b"]
    ) -> Float[Tensor, "b e"]:
        """Return e_t(t) + e_d(d)."""
        return emb + self.table(task)
