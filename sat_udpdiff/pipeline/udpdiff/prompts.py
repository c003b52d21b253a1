"""Prompts to embeddings of both branches of guidance."""

from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from data_loaders.captions import name_task
from sat_udpdiff.config import Config, Task
from sat_udpdiff.encoders.text import embed_captions
from sat_udpdiff.pipeline.udpdiff.inputs import TextInputs

logger = logging.get_logger(__name__)


def embed_branches(  # noqa: PLR0913 - text, both parts of its encoder, and how it was trained
    text: TextInputs,
    *,
    model: Any,
    tokenizer: Any,
    config: Config,
    task: Task | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Embeddings with and without the prompt, (b, n, d) each, one per prompt.

    Args:
        text: Prompts, or their embeddings; checked.
        model: The text encoder; None where all embeddings are given.
        tokenizer: Its tokenizer.
        config: How the task is told, and what the branch without a prompt is.
        task: Of the call.
        device: Where the encoder computes.
    """
    length = text.length or config.model.text_length
    told = task if config.model.task_signal == "prompt" else None

    def embed(captions: list[str], *, task: Task | None) -> Tensor:
        captions = [name_task(caption, task=task) if task else caption for caption in captions]
        for caption in captions:
            count = len(tokenizer(caption)["input_ids"])
            if count > length:
                logger.warning(f"{caption!r} has {count} tokens; those after {length} are cut off")
        return embed_captions(
            captions, model=model, tokenizer=tokenizer, text_length=length, device=device
        )

    positive = text.prompt_embeds
    if positive is None:
        positive = embed(text.prompts, task=told)
    negative = text.negative_prompt_embeds
    if negative is None and text.negative_prompt is not None:
        negative = embed(text.negative_prompts, task=told)
    if negative is None and config.text.unconditional == "empty":
        negative = embed([""], task=None).expand_as(positive)
    if negative is None:
        negative = torch.zeros_like(positive)
    return positive, negative
