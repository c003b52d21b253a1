"""Captioners of the real classes with random weights and a tokenizer of 200 words.

Greedy text of a random model is noise: words in a row that may repeat. These settings let it
through the rules of captions, for tests of the whole program:

    LENIENT = {"min_words": 1, "max_repetition": 1.0, "max_new_tokens": 12, "max_words": 60}
"""

from pathlib import Path
from typing import Any

import torch

from tests.data_loaders.panda_dense.tiny_depth import randomise

LENIENT: dict[str, Any] = {
    "min_words": 1,
    "max_repetition": 1.0,
    "max_new_tokens": 12,
    "max_words": 60,
}
"""Values of CaptionSettings under which what a random model says passes."""

VOCABULARY = 200
_LLAVA_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>", "<video>")
_QWEN_SPECIAL = (
    "<unk>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# The prompts' words, digits and punctuation, then words of captions.
_WORDS = (
    ". , : < > 0 1 2 3 4 5 6 7 8 9 USER ASSISTANT system user assistant You are a helpful "
    "seconds Describe this video in detail what is seen each person animal or object looks like "
    "and does how they move where it takes place Answer one paragraph The camera follows the "
    "man woman child dog cat horse bird car train boat tree river road hill house street field "
    "sky sun cloud rain snow water fire stone wall door window table chair cup coffee book hand "
    "face hair shirt hat red blue green yellow black white brown grey small large old young "
    "bright dark slow fast near far left right up down over under behind walks runs sits stands "
    "turns jumps rides holds drops opens closes looks smiles waits falls rises from to with by "
    "at on into across along through while then before after again two three many some all no "
    "not very more less still moving "
).split()


def save_tiny_video_llava(folder: Path) -> None:
    """A folder as LanguageBind/Video-LLaVA-7B-hf has it, for pictures of 28x28."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        VideoLlavaConfig,
        VideoLlavaForConditionalGeneration,
    )

    ids = _save_tokenizer(folder, special=_LLAVA_SPECIAL, bos="<s>", eos="</s>", pad="<pad>")
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            pad_token_id=ids["<pad>"],
            bos_token_id=ids["<s>"],
            eos_token_id=ids["</s>"],
        ),
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
    )
    _save(VideoLlavaForConditionalGeneration(config), folder, seed=11, silent=6)


def save_tiny_qwen2_5_vl(folder: Path) -> None:
    """A folder as Qwen/Qwen2.5-VL-7B-Instruct has it."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = _save_tokenizer(
        folder, special=_QWEN_SPECIAL, bos=None, eos="<|im_end|>", pad="<|endoftext|>"
    )
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        text_config=_qwen_text(ids, mrope_section=[2, 1, 1]),
        **_qwen_ids(ids),
    )
    _save(Qwen2_5_VLForConditionalGeneration(config), folder, seed=12, silent=8)


def save_tiny_qwen3_vl(folder: Path) -> None:
    """A folder as Qwen/Qwen3-VL-8B-Instruct has it."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = _save_tokenizer(
        folder, special=_QWEN_SPECIAL, bos=None, eos="<|im_end|>", pad="<|endoftext|>"
    )
    config = Qwen3VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        text_config=_qwen_text(ids, mrope_section=[2, 1, 1]) | {"head_dim": 8},
        **_qwen_ids(ids),
    )
    _save(Qwen3VLForConditionalGeneration(config), folder, seed=13, silent=8)


def _qwen_text(ids: dict[str, int], *, mrope_section: list[int]) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": mrope_section,
        },
        "pad_token_id": ids["<|endoftext|>"],
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }


def _qwen_ids(ids: dict[str, int]) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _save(model: Any, folder: Path, *, seed: int, silent: int) -> None:
    randomise(model, seed=seed, scale=1.5)
    with torch.no_grad():
        # Special tokens and the five marks after them are never the likeliest word: what is said
        # is neither empty nor cut at a sentence.
        model.lm_head.weight[: silent + 5] *= 0.01
    model.save_pretrained(folder)


def _save_tokenizer(
    folder: Path, *, special: tuple[str, ...], bos: str | None, eos: str, pad: str
) -> dict[str, int]:
    """A tokenizer of whole words; returns the ids of all tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = list(dict.fromkeys([*special, *_WORDS]))
    words += [f"thing{number}" for number in range(VOCABULARY - len(words))]
    vocabulary = {word: number for number, word in enumerate(words)}
    assert len(vocabulary) == VOCABULARY
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token="<unk>",
        additional_special_tokens=[t for t in special if t not in {bos, eos, pad, "<unk>"}],
    )
    fast.save_pretrained(folder)
    return vocabulary
