"""From words to right or wrong, case by case, and intervals against the textbook's formula."""

from __future__ import annotations

import math

import pytest

from liteframe.evaluation.scoring import confidence_interval, is_right, normalized, parse_choice


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        # alone
        ("B", "B"),
        (" b\n", "B"),
        ("(C)", "C"),
        ("D.", "D"),
        ('"A"', "A"),
        ("**B**", "B"),
        # at the start
        ("A. red star", "A"),
        ("(B) blue", "B"),
        ("C: the heart", "C"),
        ("C) the heart", "C"),
        ("b) blue", "B"),
        ("**B. blue**", "B"),
        ("B\nbecause it was blue", "B"),
        ("B, because A. came later", "B"),
        ("A. No, it was the ring, so D", "A"),  # the start goes before the end
        # at the end
        ("I think it is C", "C"),
        ("It must be (D).", "D"),
        ("The answer is A, no: B", "B"),  # the end goes before the phrase
        ("Final result:D", "D"),
        # a phrase
        ("The answer is B because of the star", "B"),
        ("the correct option is (c), the ring", "C"),
        ("My choice: D, the heart", "D"),
        ("Answer: **C** - the ring", "C"),
        ("The answer is $\\boxed{D}$, clearly", "D"),
        ("the answer is a.", "A"),
        ("The answer would be A at first, but the answer is B on second thought", "B"),  # the last hit wins
        ("Not (A); the answer is C, I say", "C"),  # the phrase goes before "(A)"
        # "(A)", then "A."
        ("One sees (A) and then (B) in the video", "B"),
        ("One sees A. and later (C) there", "C"),
        ("One sees A. and B. there", "B"),
        # nothing
        ("", None),
        ("red star", None),
        ("A red star", None),
        ("The answer is a red star", None),
        ("E", None),
        ("The answer is F", None),
        ("(E) green", None),
        ("none of them", None),
    ],
)
def test_choice_is_parsed_by_the_written_rule(text: str, letter: str | None) -> None:
    assert parse_choice(text, 4) == letter


def test_letters_count_up_to_the_number_of_options() -> None:
    assert parse_choice("F. yellow", 6) == parse_choice("the answer is F", 6) == "F"
    assert parse_choice("F", 4) is None
    assert parse_choice("It is C", 2) is None
    assert parse_choice("either (B) or (E), I think", 3) == "B"


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("red star", "red star", True),
        ("A red star.", "red star", True),
        ("The Red  Star", "red star", True),
        ("red", "red star", False),
        ("3", "3", True),
        ("", "red", None),
        (" ... ", "red", None),
    ],
)
def test_open_answers_are_compared_as_words(text: str, answer: str, right: bool | None) -> None:
    assert is_right(text, answer, None) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("B", True),
        ("B. blue circle", True),
        ("blue circle", True),
        ("The blue circle.", True),
        ("red star", False),
        ("A", False),
        ("plan B", False),  # the text of the third option, not the letter of the second
        ("green", None),
        ("E", None),
    ],
)
def test_multiple_choice_takes_the_letter_or_the_text(text: str, right: bool | None) -> None:
    assert is_right(text, "blue circle", ["red star", "blue circle", "plan B", "3"]) is right


def test_numbers_as_options_are_read_as_numbers() -> None:
    options = ["2", "0", "3", "1"]
    assert is_right("3", "3", options) is None  # one character that is no letter of an option
    assert is_right("C", "3", options) is True


def test_normalized_words() -> None:
    assert normalized(" An  Apple! ") == "apple"
    assert normalized("the") == normalized("?") == ""


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (7, 10), (130, 200), (1, 1)])
def test_interval_is_wilsons(right: int, total: int) -> None:
    z, share = 1.959963984540054, right / total  # the normal distribution's 97.5 % point
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    # Both are float64 of the same closed formula.
    assert confidence_interval(right, total) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_interval_of_nothing_is_everything() -> None:
    assert confidence_interval(0, 0) == (0.0, 1.0)
