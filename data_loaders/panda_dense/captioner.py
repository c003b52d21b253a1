"""Long captions of clips by a video language model; short ones are kept as they came.

Frames spread over the clip and a prompt go in, text comes out, is cleaned and judged. What is
judged bad is asked again with sampling, then flagged: the clip keeps its short caption then.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from data_loaders.panda_dense.caption_models import (
    KINDS,
    AskedModel,
    ModelKind,
    Question,
    batch_questions,
    make_question,
    sample_frames,
)
from data_loaders.panda_dense.caption_quality import (
    CaptionRules,
    Flag,
    clean_caption,
    first_sentence,
    judge_caption,
)
from data_loaders.panda_dense.licences import license_of
from data_loaders.panda_dense.load_parts import (
    find_origin,
    load_network,
    revision_of,
    torch_dtype,
)
from data_loaders.panda_dense.models import (
    Dtype,
    ModelFacts,
    Pieces,
    library_version,
    load_or_explain,
)
from data_loaders.panda_dense.seeds import clip_seed
from data_loaders.schema import DataError

PROMPT = (
    "Describe this video in detail: what is seen, what each person, animal or object looks like "
    "and does, how they and the camera move, and where it takes place. Answer in one paragraph."
)
"""Ours; the paper does not give its own. It asks for what the model is to draw: things and motion,
in one paragraph without lists."""

_LIKELY = {
    "video_llava": "LanguageBind/Video-LLaVA-7B-hf",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct",
}
"""Whose terms a folder of unknown weights is likely under."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSettings:
    """Model, prompt and limits of long captions."""

    model: ModelKind = "video_llava"
    """Kind of the weights; Video-LLaVA is the paper's."""
    weights: str = "LanguageBind/Video-LLaVA-7B-hf"
    """Folder or hub id. The paper's 13B was never published; 7B is the largest there is."""
    dtype: Dtype | None = None
    """None = as the weights were published on a GPU (Video-LLaVA fp16, Qwen bf16); fp32 on a
    CPU."""
    prompt: str = PROMPT
    """What the model is asked."""
    frames: int = 8
    """Shown, evenly over the clip, the first and the last among them; Video-LLaVA was trained on 8
    (257 tokens each, of a context of 4096). Qwen takes pairs: an even number."""
    frame_pixels: tuple[int, int] = (100_352, 602_112)
    """Qwen: least and most pixels of a frame after it is resized, as its processor has them (128
    and 768 tokens per pair of frames): clips of 480x720 keep their size. Video-LLaVA always sees a
    square of 224 from the middle."""
    max_new_tokens: int = 256
    """Most tokens of an answer; enough for `max_words`, and a bound on the time a loop takes."""
    temperature: float = 0.0
    """Of the first answer. 0 = greedy: the likeliest words, which invent least, and the same for
    the same clip whatever runs beside it. Above 0 clips are asked one at a time."""
    retry_temperature: float = 0.7
    """Of further answers: greedy would repeat itself."""
    top_p: float = 0.9
    """Share of the likeliest words to draw from, where there is drawing."""
    min_words: int = 15
    """Of a long caption; shorter than this it says no more than a short one."""
    max_words: int = 160
    """Of a long caption. CogVideoX reads 226 tokens of T5 and cuts the rest; English takes about
    1.4 per word with punctuation, so 160 words are 224 tokens and the end mark. Longer answers are
    cut at the last full sentence that fits."""
    max_repetition: float = 0.2
    """Highest share of runs of four words that were there before; good text stays below 0.1."""
    attempts: int = 3
    """Answers asked for before a clip is flagged, the first among them."""
    clips_per_batch: int = 8
    """Asked at once; bounds memory, and reading the weights of a 7B for each word is shared."""
    seed: int = 0
    """Of the drawing, with the clip's key and the attempt."""


def check_captions(settings: CaptionSettings, *, section: str) -> None:
    """Check the numbers.

    Raises:
        DataError: `SECTION.FIELD: expected ..., got ...`.
    """
    least = {
        "frames": 1,
        "max_new_tokens": 1,
        "temperature": 0,
        "min_words": 0,
        "max_repetition": 0,
        "attempts": 1,
        "clips_per_batch": 1,
        "seed": 0,
    }
    for name, minimum in least.items():
        value = getattr(settings, name)
        if not value >= minimum:
            raise DataError(f"{section}.{name}: expected at least {minimum}, got {value}")
    smallest, largest = settings.frame_pixels
    rules = {
        "model": (settings.model in KINDS, f"one of {', '.join(KINDS)}"),
        "prompt": (bool(settings.prompt.strip()), "a question"),
        "frames": (
            settings.model == "video_llava" or settings.frames % 2 == 0,
            f"an even number for {settings.model}, which takes pairs",
        ),
        "frame_pixels": (0 < smallest <= largest, "two numbers above 0, the smaller first"),
        "retry_temperature": (settings.retry_temperature > 0, "more than 0"),
        "top_p": (0 < settings.top_p <= 1, "more than 0 and at most 1"),
        "max_words": (
            settings.max_words >= max(1, settings.min_words),
            f"at least min_words = {settings.min_words}",
        ),
    }
    for name, (ok, expected) in rules.items():
        if not ok:
            raise DataError(
                f"{section}.{name}: expected {expected}, got {getattr(settings, name)!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionResult:
    """Captions of a clip."""

    caption_short: str
    """As the source had it, untouched; without one, the first sentence of the long one. '' where
    there is neither."""
    caption_long: str
    """The model's; where that is flagged, the short one."""
    flag: Flag
    """What was wrong with the last answer; '' = it is good."""
    attempts: int
    """Answers that were asked for."""
    answer: str
    """The last one, cleaned, good or not: for looking into flags."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    text: str
    flag: Flag


class Captioner:
    """Clips to captions.

    Args:
        model: Of transformers, in the dtype of the computation.
        tokenizer: Of the model.
        settings: Prompt and limits.
        device: Where it runs.
        facts: For the manifest.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any,
        settings: CaptionSettings,
        device: torch.device,
        facts: ModelFacts,
    ):
        from transformers import GenerationConfig

        self.model = model.to(device)
        self.tokenizer = tokenizer
        self.settings = settings
        self.device = device
        self.facts = facts
        self.pieces = Pieces(settings.clips_per_batch)
        self._asked = AskedModel(kind=settings.model, config=model.config, tokenizer=tokenizer)
        ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
        self._ends = tuple(ends) if isinstance(ends, list | tuple) else (ends,)
        pad = tokenizer.pad_token_id
        self._pad = int(self._ends[0] if pad is None else pad)
        # The hub's own sampling would come in where ours says nothing.
        model.generation_config = GenerationConfig(
            eos_token_id=list(self._ends), pad_token_id=self._pad
        )

    @classmethod
    def load(
        cls, settings: CaptionSettings, *, device: torch.device, section: str = "caption"
    ) -> "Captioner":
        """Open the weights and the tokenizer that the settings name.

        Raises:
            ValueError: They are not there, do not fit, or are of another kind of model.
        """
        import transformers

        key, kind = f"{section}.weights", KINDS[settings.model]
        origin = find_origin(settings.weights, key=key, get=kind.get)
        source = origin.source
        model = load_network(
            getattr(transformers, kind.network),
            origin=origin,
            dtype=torch_dtype(settings.dtype, device=device, on_gpu=kind.on_gpu),
            model_type=settings.model,
        )
        tokenizer = load_or_explain(
            source,
            lambda: transformers.AutoTokenizer.from_pretrained(
                source.name, local_files_only=source.is_local
            ),
            key=key,
            get=kind.get,
        )
        facts = ModelFacts(
            backend="model",
            model=settings.weights,
            revision=revision_of(origin),
            version=library_version("transformers"),
            license=license_of(settings.weights, otherwise=_LIKELY[settings.model]),
        )
        return cls(model, tokenizer=tokenizer, settings=settings, device=device, facts=facts)

    @torch.inference_mode()
    def caption(
        self,
        clips: Sequence[UInt8[np.ndarray, "_ _ _ 3"]],
        *,
        fps: Sequence[float],
        keys: Sequence[str],
        short_captions: Sequence[str],
    ) -> list[CaptionResult]:
        """Captions of clips.

        Args:
            clips: Frames (t, h, w, 3), 0..255; sizes may differ.
            fps: Frames per second of each.
            keys: Of each; with the seed and the attempt they decide what is drawn.
            short_captions: Of each; '' = none.

        Returns:
            One for each clip, in order. Clips that are asked about together change each other's
            answers by rounding at most.

        Raises:
            ValueError: Prompt or tokenizer do not fit the model.
            torch.OutOfMemoryError: The device is full.
        """
        asked = [self._question(rgb, fps=rate) for rgb, rate in zip(clips, fps, strict=True)]
        results = []
        for answer, question, key, short in zip(
            self._first_answers(asked, keys=keys), asked, keys, short_captions, strict=True
        ):
            last, attempts = answer, 1
            while last.flag and attempts < self.settings.attempts:
                attempts += 1
                last = self._draw(question, key=key, attempt=attempts)
            results.append(_result(last, short=short, attempts=attempts))
        return results

    def _question(self, rgb: UInt8[np.ndarray, "t h w 3"], *, fps: float) -> Question:
        settings = self.settings
        return make_question(
            sample_frames(rgb, fps=fps, count=settings.frames),
            model=self._asked,
            prompt=settings.prompt,
            frame_pixels=settings.frame_pixels,
        )

    def _first_answers(
        self, questions: Sequence[Question], *, keys: Sequence[str]
    ) -> Iterator[_Answer]:
        if self.settings.temperature > 0:
            for question, key in zip(questions, keys, strict=True):
                yield self._draw(question, key=key, attempt=1)
            return
        for start in range(0, len(questions), self.pieces.size):
            yield from self._ask(questions[start : start + self.pieces.size], temperature=0.0)

    def _draw(self, question: Question, *, key: str, attempt: int) -> _Answer:
        """One clip alone: `generate` draws from one stream for all that it is asked at once."""
        first = attempt == 1
        temperature = self.settings.temperature if first else self.settings.retry_temperature
        with _seeded(clip_seed(self.settings.seed, key, attempt), device=self.device):
            return self._ask([question], temperature=temperature)[0]

    def _ask(self, questions: Sequence[Question], *, temperature: float) -> list[_Answer]:
        from transformers import GenerationConfig

        settings = self.settings
        batch = batch_questions(questions, model=self._asked, pad=self._pad)
        batch = {name: value.to(self.device) for name, value in batch.items()}
        batch["pixel_values_videos"] = batch["pixel_values_videos"].to(self.model.dtype)
        drawing = {"do_sample": True, "temperature": temperature, "top_p": settings.top_p}
        config = GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=list(self._ends),
            pad_token_id=self._pad,
            **({**drawing, "top_k": 0} if temperature > 0 else {"do_sample": False}),
        )
        tokens = self.model.generate(**batch, generation_config=config)
        written = tokens[:, batch["input_ids"].shape[1] :].cpu()
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        # Padding follows an end mark, so a row without one was stopped by the limit.
        ended = torch.isin(written, torch.tensor(self._ends)).any(dim=1).tolist()
        return [self._judge(text, was_cut=not end) for text, end in zip(texts, ended, strict=True)]

    def _judge(self, text: str, *, was_cut: bool) -> _Answer:
        settings = self.settings
        text = clean_caption(text, was_cut=was_cut, max_words=settings.max_words)
        rules = CaptionRules(
            min_words=settings.min_words,
            max_words=settings.max_words,
            max_repetition=settings.max_repetition,
        )
        return _Answer(text=text, flag=judge_caption(text, rules=rules))


def _result(answer: _Answer, *, short: str, attempts: int) -> CaptionResult:
    has_short = bool(short.strip())
    if answer.flag:
        short = short if has_short else ""
        return CaptionResult(
            caption_short=short,
            caption_long=short,
            flag=answer.flag,
            attempts=attempts,
            answer=answer.text,
        )
    return CaptionResult(
        caption_short=short if has_short else first_sentence(answer.text),
        caption_long=answer.text,
        flag="",
        attempts=attempts,
        answer=answer.text,
    )


@contextmanager
def _seeded(seed: int, *, device: torch.device) -> Iterator[None]:
    """`generate` takes no generator: seed torch's own, and leave it as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.random.manual_seed(seed)
        yield
