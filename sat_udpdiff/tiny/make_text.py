"""Make the tiny text encoder: a tokenizer from the world's captions, and a small frozen T5.

    python -m sat_udpdiff.tiny.make_text [--output FOLDER] [--seed 0]

Nothing is trained here. A random T5 keeps its words apart, but its relative position bias is close
to nothing, so the order of words is all but lost, and the network (rotary positions are for video
tokens only) could not tell "a red disc and a blue square" from "a blue disc and a red square".
So the bias is set, not drawn: each of the four heads looks at one neighbour (the previous word, the
next, the one before the previous, the one after the next). With two layers a word's embedding holds
itself and the four words to each side. Everything else is random from the seed.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import T5Config, T5EncoderModel

from data_loaders.synthetic import WorldConfig, make_scene
from data_loaders.synthetic_captions import long_caption, short_caption
from sat_udpdiff.encoders.source import TINY_WEIGHTS

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
# Words that prompts may hold and captions of the worlds do not.
_TASK_WORDS = ("depth", "map", "segmentation", "video")
_PIECES = "abcdefghijklmnopqrstuvwxyz0123456789"
_MARKS = ".,;:!?'\"()-/"
_SCENES: tuple[tuple[Literal["simple", "full"], int], ...] = (("simple", 600), ("full", 400))

_HEAD_OFFSETS = (-1, 1, -2, 2)
_NEIGHBOUR_BIAS = 7.0
# Of the random part of the attention scores; small, so that the set offsets decide.
_SCORE_STD = 0.5


def world_words(*, seed: int) -> list[str]:
    """Words of the captions of both worlds, sorted; numbers excluded (digits are pieces)."""
    words: set[str] = set(_TASK_WORDS)
    for world, count in _SCENES:
        config = WorldConfig(world=world)
        for index in range(count):
            scene = make_scene(index, seed=seed, config=config)
            for visible in (0, 1):
                areas = np.full(len(scene.things), visible)
                captions = short_caption(scene, areas=areas), long_caption(scene, areas=areas)
                words.update(" ".join(captions).replace(",", " ").lower().split())
    return sorted(word for word in words if word.isalpha())


def make_tokenizer(words: list[str]) -> Tokenizer:
    """Word-level tokenizer; a word that is not in `words` is spelled letter by letter."""
    pieces = [*_PIECES, *(f"##{piece}" for piece in _PIECES), *_MARKS]
    tokens = dict.fromkeys([PAD, END, UNKNOWN, *words, *pieces])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, vocabulary[END])]
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def make_model(*, vocabulary_size: int, seed: int) -> T5EncoderModel:
    """Small T5 encoder with random weights and heads that look at neighbours, float32."""
    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=len(_HEAD_OFFSETS),
        relative_attention_num_buckets=32,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        use_cache=False,
    )
    model = T5EncoderModel(config)
    generator = torch.Generator().manual_seed(seed)
    head_size, width = config.d_kv, config.d_model
    stds = {
        "shared": 1.0,
        "SelfAttention.q": _SCORE_STD / (width * head_size) ** 0.5,
        "SelfAttention.k": width**-0.5,
        "SelfAttention.v": width**-0.5,
        "SelfAttention.o": (config.num_heads * head_size) ** -0.5,
        "DenseReluDense.wi_0": width**-0.5,
        "DenseReluDense.wi_1": width**-0.5,
        # Small: the feed-forward part is nonlinear and would blur the words.
        "DenseReluDense.wo": 0.5 * config.d_ff**-0.5,
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            match = [std for part, std in stds.items() if f"{part}.weight" in name]
            if match:
                parameter.normal_(0.0, match[0], generator=generator)
        block: Any = model.encoder.block[0]
        attention = block.layer[0].SelfAttention
        attention.relative_attention_bias.weight.zero_()
        for head, offset in enumerate(_HEAD_OFFSETS):
            # Buckets of T5: distances below 8 one by one, words ahead in the second half.
            bucket = abs(offset) + (config.relative_attention_num_buckets // 2) * (offset > 0)
            attention.relative_attention_bias.weight[bucket, head] = _NEIGHBOUR_BIAS
    return model


def save(folder: Path, *, tokenizer: Tokenizer, words: list[str], model: T5EncoderModel) -> None:
    """Write model and tokenizer as transformers reads them; no pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    # By hand: transformers 5 writes a class name that transformers 4 does not know.
    description = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "closed_vocabulary": words,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(description, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=TINY_WEIGHTS / "text")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    words = world_words(seed=options.seed)
    tokenizer = make_tokenizer(words)
    model = make_model(vocabulary_size=tokenizer.get_vocab_size(), seed=options.seed)
    save(options.output, tokenizer=tokenizer, words=words, model=model)
    megabytes = sum(path.stat().st_size for path in options.output.iterdir()) / 1e6
    print(f"{options.output}: {len(words)} words, {megabytes:.2f} MB")


if __name__ == "__main__":
    main()
