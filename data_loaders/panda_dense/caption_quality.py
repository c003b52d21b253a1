"""Rules for what a model says of a clip: cleaned, then empty, refused, repetitive or of bad length.

No model and no randomness here: the same text always gets the same verdict.
"""

import re
from dataclasses import dataclass
from typing import Literal

Flag = Literal["", "empty", "repetitive", "refused", "too short", "too long"]
"""What is wrong with a caption; '' = nothing."""

_GRAM = 4
"""Words in a row that are compared: shorter ones ("on the left of the") repeat in good text."""

# Before an answer, and where a model goes on to write the next turn of the talk by itself.
_ROLES = r"(?:ASSISTANT|USER|SYSTEM|Assistant|User|System|Human|Caption|Description|Answer)"
_ROLE_BEFORE = re.compile(rf"^\s*(?:{_ROLES}\s*:\s*|assistant\s*\n\s*)+")
_NEXT_TURN = re.compile(r"\s*(?:USER|ASSISTANT|Human|###\s*\w+)\s*:.*$", re.DOTALL)
_OPENING = re.compile(
    r"^(?i:sure|sure thing|certainly|of course)(?:[,!.:]|,?\s+(?i:here)\b[^.:!\n]{0,80}[.:!])"
    r"\s*(?=[A-Z])|"
    r"^(?i:here is|here's|here are)\b[^.:\n]{0,80}:\s*"
)
_MARKUP = re.compile(r"\*\*|__|^#{1,6}\s*|^\s*[-*]\s+", re.MULTILINE)
# A sentence ends at a mark, with a quote or bracket after it or not; "3.5" and "e.g." do not end.
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bMr)(?<!\bDr)[.!?][\"')\]]*(?=\s|$)")

_CANNOT = r"(?:cannot|can't|can not|could not|couldn't|am unable to|'m unable to|am not able to|"
_CANNOT += r"'m not able to|do not have the ability to|don't have the ability to)"
_TASK = r"(?:see|view|watch|access|play|open|describe|analy[sz]e|provide|assist|help|process|"
_TASK += r"identify|fulfil|comply|answer|create|generate|determine)"
# At the start of a sentence, so that people in a clip may be sorry.
_REFUSALS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:i'm|i am|we're|we are)?\s*(?:very |so |really )?sorry\b(?:,| but| for| i\b|\.|$)",
        r"(?:i )?apologi[sz]e\b",
        r"(?:as|since i am|since i'm) an? (?:\w+ )?(?:ai|artificial intelligence|language model)\b",
        rf"(?:unfortunately,? |however,? )?i\s?{_CANNOT} (?:\w+ )?{_TASK}\b",
        r"(?:unfortunately,? )?(?:there is|there's|i see) no (?:video|image|clip)\b",
        r"no (?:video|image|clip) (?:was|is|has been) (?:provided|given|attached|uploaded)",
        r"please (?:provide|upload|share|attach)\b.*\b(?:video|image|clip)\b",
        r"i (?:do not|don't) see (?:a|any) (?:video|image|clip)\b",
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRules:
    """Limits of a long caption."""

    min_words: int
    """Fewer are too short."""
    max_words: int
    """More are cut at the last full sentence that fits."""
    max_repetition: float
    """Highest share of words in a row that were there before; see `repetition`."""


def clean_caption(text: str, *, was_cut: bool, max_words: int) -> str:
    """Leave the description alone.

    Args:
        text: What the model wrote.
        was_cut: Whether it stopped because it had written as much as it may, not by itself.
        max_words: Of the result, where a sentence ends within them.

    Returns:
        One paragraph: without names of roles, the polite opening, markup and quotes around it,
        without a turn that the model wrote for the other side, cut at the last full sentence where
        it was cut or is too long. Text without a full sentence is left as it is.
    """
    text = _ROLE_BEFORE.sub("", text)
    text = _NEXT_TURN.sub("", text)
    text = _OPENING.sub("", _MARKUP.sub("", text).strip())
    text = re.sub(r"\s+", " ", text).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    if len(text.split()) > max_words:
        return _full_sentences(text, within=max_words) or text
    return (_full_sentences(text, within=max_words) or text) if was_cut else text


def first_sentence(text: str) -> str:
    """Up to the first mark that ends a sentence; all of it where there is none."""
    end = _SENTENCE_END.search(text)
    return text[: end.end()].strip() if end else text.strip()


def judge_caption(text: str, *, rules: CaptionRules) -> Flag:
    """The first thing wrong with a cleaned caption, or ''."""
    if not re.search(r"[^\W_]", text):
        return "empty"
    if is_refusal(text):
        return "refused"
    if repetition(text) > rules.max_repetition:
        return "repetitive"
    words = len(text.split())
    if words < rules.min_words:
        return "too short"
    return "too long" if words > rules.max_words else ""


def repetition(text: str) -> float:
    """Share, 0..1, of the runs of four words that stood in the text before.

    0 for text of four words or fewer. A loop of any length comes near 1; good descriptions stay
    below 0.1.
    """
    words = re.findall(r"\w+", text.lower())
    runs = [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0


def is_refusal(text: str) -> bool:
    """Whether one of the first two sentences declines instead of describing."""
    plain = text.replace("\u2019", "'").strip()
    start = 0
    for _ in range(2):
        sentence = plain[start:].lstrip()
        if any(pattern.match(sentence) for pattern in _REFUSALS):
            return True
        end = _SENTENCE_END.search(plain, start)
        if end is None:
            return False
        start = end.end()
    return False


def _full_sentences(text: str, *, within: int) -> str:
    """The longest beginning that ends a sentence and has at most so many words; '' without one."""
    best = ""
    for end in _SENTENCE_END.finditer(text):
        beginning = text[: end.end()]
        if len(beginning.split()) > within:
            break
        best = beginning
    return best.strip()
