import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_loaders.panda_dense.caption_quality import (
    CaptionRules,
    clean_caption,
    first_sentence,
    is_refusal,
    judge_caption,
    repetition,
)

RULES = CaptionRules(min_words=5, max_words=30, max_repetition=0.2)
GOOD = (
    "A woman in a red coat walks along a wet street at night. Cars pass behind her, and the "
    "lights of the shops are mirrored in the puddles. The camera follows her from the left."
)


def clean(text, *, was_cut=False, max_words=100):
    return clean_caption(text, was_cut=was_cut, max_words=max_words)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (GOOD, GOOD),
        (f"  ASSISTANT: {GOOD}\n", GOOD),
        (f"assistant\n{GOOD}", GOOD),
        (f"Caption: {GOOD}", GOOD),
        (f'"{GOOD}"', GOOD),
        (f"Sure! {GOOD}", GOOD),
        (f"Here is a detailed description of the video: {GOOD}", GOOD),
        (f"Certainly, here you go: {GOOD}", GOOD),
        (f"Sure, here is a description: {GOOD}", GOOD),
        ("Of course the man runs. He falls.",) * 2,
        (f"{GOOD}\nUSER: And then? ASSISTANT: She leaves.", GOOD),
        (f"{GOOD}###Human: What else?", GOOD),
        ("**Scene**: A dog runs.\n- It barks.", "Scene: A dog runs. It barks."),
        ("A dog\n\nruns   away.", "A dog runs away."),
        ("Certainly beautiful weather over the hills.",) * 2,
        ("The user: interface of a phone is shown.",) * 2,
    ],
)
def test_what_is_not_the_description_goes(said, kept) -> None:
    assert clean(said) == kept


def test_an_answer_that_was_cut_ends_with_its_last_full_sentence() -> None:
    said = "A dog runs over a field. It catches a ball. Then the came"
    assert clean(said, was_cut=True) == "A dog runs over a field. It catches a ball."
    assert clean(said) == said
    assert clean("A dog runs over a fie", was_cut=True) == "A dog runs over a fie"
    ended = "A dog runs over a field. It catches a ball."
    assert clean(ended, was_cut=True) == ended


def test_a_long_answer_is_cut_where_a_sentence_fits() -> None:
    said = "One two three. Four five six! Seven eight nine ten."
    assert clean(said, max_words=10) == said
    assert clean(said, max_words=9) == "One two three. Four five six!"
    assert clean(said, max_words=5) == "One two three."
    assert clean(said, max_words=2) == said


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("A dog runs. It barks.", "A dog runs."),
        ("It costs 3.5 euros, e.g. here. Then more.", "It costs 3.5 euros, e.g. here."),
        ('He says "stop!" and goes. Then more.', 'He says "stop!"'),
        ("Mr. Smith waves. He leaves.", "Mr. Smith waves."),
        ("no mark at all", "no mark at all"),
        ("", ""),
    ],
)
def test_the_first_sentence(text, first) -> None:
    assert first_sentence(text) == first


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't describe this video.",
        "I\u2019m sorry, I cannot help with that.",
        "Sorry, I can't assist with that request.",
        "I am sorry. The video is unclear.",
        "I apologize, but there is nothing to see.",
        "As an AI language model, I cannot watch videos.",
        "As an AI, I do not have eyes.",
        "I cannot see the video that you mention.",
        "I am unable to view videos directly.",
        "I'm not able to process videos.",
        "Unfortunately, I can't open the file.",
        "There is no video attached to the message.",
        "No video was provided. Please upload one.",
        "Thank you for asking. I cannot view the clip.",
        "Please provide the video so that I can describe it.",
        "I don't see any video here.",
    ],
)
def test_refusals_are_found(text) -> None:
    assert is_refusal(text)
    assert judge_caption(text, rules=RULES) == "refused"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        'A man says "I\'m sorry" to a woman, who cannot see him from where she stands.',
        "The person cannot open the jar. A friend helps with a cloth.",
        "A robot, as an AI would, sorts parts into boxes. It does not stop.",
        "The video shows no people. The camera moves over a quiet lake.",
        "A sorry sight: the car has lost two of its wheels and stands in the mud.",
        "There is no one on the beach. The waves roll in slowly.",
        "One. Two. I cannot see further than the third sentence of this text.",
    ],
)
def test_people_in_a_clip_may_be_sorry(text) -> None:
    assert not is_refusal(text)


def test_repetition_is_the_share_of_runs_seen_before() -> None:
    # Words a b c d e f: runs abcd bcde cdef, none twice.
    assert repetition("a b c d e f") == 0
    # a b c d a b c d: runs abcd bcda cdab dabc abcd, one of five twice.
    assert repetition("a b c d a b c d") == pytest.approx(0.2)
    assert repetition("the the the the the the") == pytest.approx(2 / 3)
    assert repetition("a b c d") == 0
    assert repetition("A dog, a DOG. A dog! A dog? A dog; a dog") > 0.7
    assert repetition(GOOD) == 0
    assert repetition(" ".join([GOOD] * 3)) > 0.6


def test_one_repeated_sentence_is_repetitive_and_one_repeated_phrase_is_not() -> None:
    loop = "The man is standing in front of the house. " * 3
    assert judge_caption(loop.strip(), rules=RULES) == "repetitive"
    phrase = (
        "On the left side of the road a man sells fruit. On the left side of the picture, a dog "
        "sleeps under a table while people walk by and talk."
    )
    assert judge_caption(phrase, rules=RULES) == ""


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("", "empty"),
        (" .. ! ", "empty"),
        ("_ _ _", "empty"),
        ("A dog runs.", "too short"),
        ("A dog runs over grass.", ""),
        (" ".join(f"w{i}" for i in range(31)), "too long"),
        (" ".join(f"w{i}" for i in range(30)), ""),
        ("word " * 40, "repetitive"),
    ],
)
def test_the_first_thing_wrong_is_named(text, flag) -> None:
    assert judge_caption(text, rules=RULES) == flag


@given(st.text(max_size=300), st.booleans(), st.integers(1, 40))
def test_no_text_breaks_the_rules_and_cleaning_adds_nothing(text, was_cut, max_words) -> None:
    cleaned = clean_caption(text, was_cut=was_cut, max_words=max_words)
    assert "\n" not in cleaned
    assert cleaned == cleaned.strip()
    assert len(cleaned) <= len(text)
    assert 0 <= repetition(cleaned) < 1
    judge_caption(cleaned, rules=RULES)
    assert cleaned.startswith(first_sentence(cleaned))
