"""The frozen text encoder: captions to token embeddings, through transformers' T5EncoderModel.

As CogVideoX was trained: padded to a fixed length, cut at it, no attention mask (padding takes part
inside T5 and in the network), and all-zero embeddings as the unconditional branch.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sat_udpdiff.config import TextEncoderConfig
from sat_udpdiff.encoders.source import DTYPES, WeightSource, find_source, loading_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

_KEY = "text.weights"
_GET = "set text.weights=tiny, or fetch the real ones: hf download google/t5-v1_1-xxl"


class TextEncoder:
    """Frozen captions-to-embeddings encoder.

    Args:
        model: the T5 encoder; it is frozen, moved and switched to evaluation here.
        tokenizer: its tokenizer.
        config: how the unconditional branch is made, and the dtype of the computation.
        text_length: tokens per caption, after padding or cutting.
        device: where it runs.
    """

    def __init__(
        self,
        model: "T5EncoderModel",
        *,
        tokenizer: "PreTrainedTokenizerBase",
        config: TextEncoderConfig,
        text_length: int,
        device: torch.device | str = "cpu",
    ):
        self.config = config
        self.text_length = text_length
        self.text_dim = int(model.config.d_model)
        self.device = torch.device(device)
        self.dtype = DTYPES[config.dtype]
        self.tokenizer = tokenizer
        self.model: Any = model  # transformers types `to` as if it were a function
        self.model.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)

    @classmethod
    def load(
        cls,
        config: TextEncoderConfig,
        *,
        text_length: int,
        text_dim: int,
        device: torch.device | str = "cpu",
    ) -> "TextEncoder":
        """Load model and tokenizer that `config.weights` names (folder, hub id or 'tiny').

        A folder holds both, or has `text_encoder/` and `tokenizer/` as diffusers lays them out.

        Raises:
            ValueError: nothing there, or weights that do not fit; the message names the place and
                says where weights are to be had.
        """
        source = find_text_encoder(config)
        try:
            with _quiet_if(source.is_local):
                model = _load_model(source, dtype=DTYPES[config.dtype])
                tokenizer = _load_tokenizer(source)
        except Exception as cause:
            raise loading_error(source, key=_KEY, get=_GET, cause=cause) from cause
        if model.config.d_model != text_dim:
            raise ValueError(
                f"model.text_dim: {config.weights} gives {model.config.d_model}, "
                f"configured {text_dim}"
            )
        return cls(
            model, tokenizer=tokenizer, config=config, text_length=text_length, device=device
        )

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Float[Tensor, "b n d"]:
        """Embed captions, in the encoder's dtype; (b, text_length, text_dim)."""
        return embed_captions(
            captions,
            model=self.model,
            tokenizer=self.tokenizer,
            text_length=self.text_length,
            device=self.device,
        )

    def unconditional(self, batch_size: int) -> Float[Tensor, "b n d"]:
        """Embeddings of the branch without text: zeros, or those of the empty caption."""
        if self.config.unconditional == "empty":
            return self.encode([""]).expand(batch_size, -1, -1)
        size = (batch_size, self.text_length, self.text_dim)
        return torch.zeros(size, device=self.device, dtype=self.dtype)

    def num_tokens(self, caption: str) -> int:
        """Tokens of a caption before padding or cutting, the end mark included."""
        return len(self.tokenizer(caption)["input_ids"])

    def unknown_words(self, caption: str) -> list[str]:
        """Words that a small, closed vocabulary lacks, in order; [] for an open one (T5's own)."""
        known = self.known_words()
        if not known:
            return []
        words = re.findall(r"[^\W\d_]+", caption.lower())
        return [word for word in dict.fromkeys(words) if word not in known]

    def known_words(self) -> frozenset[str]:
        """Whole words of a small, closed vocabulary; empty for an open one (T5's own)."""
        words = self.tokenizer.init_kwargs.get("closed_vocabulary", ())
        return frozenset(words)


@torch.no_grad()
def embed_captions(
    captions: Sequence[str],
    *,
    model: "T5EncoderModel",
    tokenizer: "PreTrainedTokenizerBase",
    text_length: int,
    device: torch.device | str,
) -> Float[Tensor, "b n d"]:
    """Embed captions, padded or cut to `text_length` tokens, in the model's dtype."""
    tokens = tokenizer(
        list(captions),
        padding="max_length",
        truncation=True,
        max_length=text_length,
        return_tensors="pt",
    )
    # No attention mask, on purpose: the released weights attend to the padding.
    return model(input_ids=tokens["input_ids"].to(device)).last_hidden_state


def find_text_encoder(config: TextEncoderConfig) -> WeightSource:
    """Where the weights are; ValueError names what is missing and where it is to be had."""
    return find_source(config.weights, subfolder="text_encoder", tiny="text", key=_KEY, get=_GET)


@contextmanager
def _quiet_if(quiet: bool) -> Iterator[None]:
    """Without transformers' progress bars, which say nothing when the files are at hand."""
    from transformers.utils import logging

    quiet = quiet and logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet:
            logging.enable_progress_bar()


def _load_model(source: WeightSource, *, dtype: torch.dtype) -> "T5EncoderModel":
    from transformers import T5EncoderModel

    # In its final dtype from the start: T5-XXL in fp32 is 19 GB of host memory per rank.
    loaded: Any = T5EncoderModel.from_pretrained(
        source.name, output_loading_info=True, dtype=dtype, **_place(source, default="")
    )
    model, info = loaded
    # transformers only logs these; decoder tensors of a full T5 are left over and harmless.
    wrong = [*info["missing_keys"], *info["mismatched_keys"]]
    if wrong:
        raise ValueError(
            f"{len(wrong)} tensors do not fit its config.json, first {sorted(map(str, wrong))[0]}"
        )
    return model


def _load_tokenizer(source: WeightSource) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.name, **_place(source, default="tokenizer"))


def _place(source: WeightSource, *, default: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that say where below the source the files are."""
    subfolder = (default or source.subfolder) if source.subfolder else ""
    return {"subfolder": subfolder, "local_files_only": source.is_local}
