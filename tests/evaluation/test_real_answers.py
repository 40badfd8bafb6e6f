"""Answers as models write them, with the letter that a reader takes from each, or none."""

from __future__ import annotations

import pytest

from liteframe.evaluation.scoring import is_right, parse_choice

# Of four options; None is for what names no option: it is wrong, and counted.
ANSWERS = [
    # as asked
    ("C", "C"),
    ("C.", "C"),
    ("c", "C"),
    ("(C)", "C"),
    ("(C", "C"),
    (" C\n\n", "C"),
    ("C<|im_end|>".removesuffix("<|im_end|>"), "C"),
    ("**C**", "C"),
    ("`C`", "C"),
    ("[C]", "C"),
    ("$\\boxed{C}$", "C"),
    ("<answer>C</answer>", "C"),
    ("（C）", "C"),
    # the letter and its option
    ("C. A man in a red coat.", "C"),
    ("C.A man in a red coat", "C"),
    ("C) A man in a red coat", "C"),
    ("C: A man in a red coat", "C"),
    ("C - A man in a red coat", "C"),
    ("C, a man in a red coat", "C"),
    ("(C) A man in a red coat", "C"),
    ("(c) a man in a red coat", "C"),
    ("**C. A man in a red coat**", "C"),
    ("C\nThe man wears a red coat at 00:12.", "C"),
    ("A. D.C. is where it was filmed.", "A"),
    # a sentence
    ("The answer is C.", "C"),
    ("The correct answer is C", "C"),
    ("The correct answer is: (C) A man in a red coat.", "C"),
    ("The best answer is (C), because the man puts on a coat.", "C"),
    ("The answer is A because the man puts on a coat.", "A"),
    ("The answer is most likely C, since a coat is seen.", "C"),
    ("Answer: C", "C"),
    ("Answer: **C. A man in a red coat**", "C"),
    ("Answer:C", "C"),
    ("Best option: (C) A man in a red coat", "C"),
    ("Best option: C", "C"),
    ("Option C", "C"),
    ("Option C is correct, as the man puts on a coat.", "C"),
    ("I would choose option (C) for this question.", "C"),
    ("My final answer is option C, the man.", "C"),
    ("C is the correct answer, because the man puts on a coat.", "C"),
    ("(C) is correct since the coat is red.", "C"),
    ("Based on the video, the man puts on a coat. Therefore, the answer is C.", "C"),
    ("Based on the video, the best option is (C) A man in a red coat.", "C"),
    ("Looking at the frames, it should be C", "C"),
    ("The man first sits (A), then he puts on a coat. So the correct option is (C), not the first one.", "C"),
    ("(A) is wrong and (B) is wrong, so the answer is (C) here.", "C"),
    ("The answer is A... wait, the coat is red, so the answer is C here.", "C"),
    ("<think>Maybe (A)? The answer is B. No.</think>\n\nC", "C"),
    ("<think>It is A or B</think>The answer is C, the man.", "C"),
    ("答案：C", "C"),
    ("Among the options, one fits: C) A man in a red coat, seen at the end of it all", "C"),
    # denied
    ("The answer is not A, the answer is C here", "C"),
    ("It is not A", None),
    ("Neither (A) nor (B)", None),
    # no letter
    ("", None),
    (".", None),
    ("A man in a red coat", None),
    ("a man in a red coat", None),
    ("Answer: A man in a red coat", None),
    ("The answer is a man in a red coat", None),
    ("I cannot tell from the video.", None),
    ("There is a man; he puts on a coat.", None),
    ("e.g. the man in the coat", None),
    ("The video shows D.C. at night", None),
    ("E", None),
    ("(F)", None),
    ("The answer is E.", None),
    ("None of the above", None),
    ("A, B, C and all the others fit", "A"),  # the start decides, as for every harness that reads the first letter
    ("Sorry, but as an AI I can't watch videos.", None),
    ("Yes", None),
    ("3", None),
    ("ABCD", None),
    ("Because", None),
]


def test_there_are_enough_of_them() -> None:
    assert len({text for text, _ in ANSWERS}) >= 60


@pytest.mark.parametrize(("text", "letter"), ANSWERS)
def test_the_letter_that_a_reader_takes(text: str, letter: str | None) -> None:
    assert parse_choice(text, 4) == letter


def test_what_cannot_be_parsed_is_the_same_every_time() -> None:
    assert {is_right("I cannot tell.", "red", ["red", "blue"]) for _ in range(50)} == {None}


@pytest.mark.parametrize(("text", "letter"), [("F", "F"), ("(F) six", "F"), ("The answer is F.", "F"), ("G", None)])
def test_six_options_have_six_letters(text: str, letter: str | None) -> None:
    assert parse_choice(text, 6) == letter


def test_of_two_options_of_the_same_text_the_right_one_counts() -> None:
    options = ["walk away", "jump", "walk away"]
    assert is_right("A", "walk away", options, answer_index=2) is False
    assert is_right("C", "walk away", options, answer_index=2) is True
    assert is_right("A", "walk away", options) is True
