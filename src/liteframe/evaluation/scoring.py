"""From a model's words to right or wrong, and from counts to intervals. What cannot be parsed is wrong, and counted."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from scipy.stats import binomtest

from liteframe.data.questions import LETTERS

_STOP = ".,;:!?\"'`*"
# Markdown, quotes and LaTeX around a letter say nothing: **B**, "B", [B] and \boxed{B} are B, B, (B) and (B).
_PLAIN = str.maketrans("[]{}（）：。，", "()()():.,", "*_`$\"'“”‘’")
_TAGS = re.compile(r"</?answer>", re.IGNORECASE)
_NEGATED = re.compile(r"(?:\bnot|n'?t|\bneither|\bnor|\bexcept|\bthan)\s+(?:option\s+|choice\s+)?\(?$", re.IGNORECASE)
_REFUTED = re.compile(r"\)?\s+(?:is|was)\s+(?:wrong|incorrect|false|not)\b", re.IGNORECASE)
# "Answer: A man runs" begins with an article, "The answer is A because he runs" does not.
_NO_ARTICLE = (
    r"(?!(?<=\bA)\s+(?!(?:because|since|as|and|for|with|which|where|due|based|is|was|in|though|given)\b)[a-z])"
)
_TIMID = r"(?:\s+(?:most\s+likely|probably|therefore|thus|clearly|definitely|likely))?"
_IS = rf"(?:\s+(?:is|was|would\s+be|should\s+be|must\s+be){_TIMID})?"


def parse_choice(text: str, num_options: int) -> str | None:
    """The option letter that `text` names, or None.

    The first class that hits decides: a letter alone at the start, one at the end, a phrase ("the answer is B", "B is
    correct"), "(A)", "A."; inside a class the last hit wins. Letters beyond the options do not count, nor do those that
    are denied ("not B", "B is wrong"); small ones do only where they cannot be a word ("b", "b) blue", "(b)"). What a
    model thought aloud before ``</think>`` is not its answer.
    """
    letters = LETTERS[:num_options]
    words = _TAGS.sub(" ", text.rpartition("</think>")[2]).translate(_PLAIN).strip()
    bare = words.strip(_STOP + "() ")
    if len(bare) == 1 and bare.upper() in letters:
        return bare.upper()
    small = letters.lower()
    either = f"[{letters}{small}]"
    patterns = (
        rf"^(?:\(?({either})(?:\)|\s*\n|[.:](?=\s|$))|([{letters}])(?:[.:](?![A-Z]\.)|,|\s+[-–—]\s))",
        rf"(?:^|[\s(:])([{letters}])[).!?]*$",
        # "the answer is a star" names no option, "the answer is a." does.
        rf"(?i:answer|option|choice){_IS}\s*:?\s*"
        rf"(?:\(({either})\)|([{letters}])\b{_NO_ARTICLE}|([{small}])(?:[).,;:!?]|$))"
        rf"|(?:^|[\s(])([{letters}])\)?\s+is\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best|accurate|appropriate)\b",
        rf"\(({either})\)",
        rf"(?:^|\s)([{letters}])[.)](?![A-Z]\.)",
    )
    for index, pattern in enumerate(patterns):
        hits = [
            letter
            for hit in re.finditer(pattern, words)
            for group, letter in enumerate(hit.groups(), 1)
            if letter
            and not _REFUTED.match(words, hit.end(group))
            and not (index and _NEGATED.search(words[: hit.start(group)]))
        ]
        if hits:
            return hits[-1].upper()
    return None


def normalized(text: str) -> str:
    """Lower case, single spaces, no article, no punctuation at the ends."""
    words = text.strip().strip(_STOP + " ").lower().split()
    while words and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(words)


def is_right(text: str, answer: str, options: Sequence[str] | None, answer_index: int | None = None) -> bool | None:
    """Whether `text` gives `answer` (a text, also for multiple choice); None if it could not be parsed.

    Of multiple choice, an option's own text counts as well as its letter.

    Args:
        answer_index: which option is right, where two have the same text; None takes every one with the text `answer`.
    """
    said = normalized(text)
    if options is None:
        return said == normalized(answer) if said else None
    # "plan B" may be the text of option C; a lone letter is always a letter.
    if len(said) > 1:
        for option in options:
            if normalized(option) == said:
                return option == answer
    letter = parse_choice(text, len(options))
    if letter is None:
        return None
    said_index = LETTERS.index(letter)
    return said_index == answer_index if answer_index is not None else options[said_index] == answer


def confidence_interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if total == 0:
        return (0.0, 1.0)
    interval = binomtest(right, total).proportion_ci(confidence_level=0.95, method="wilson")
    return (float(interval.low), float(interval.high))


def mean_of_shares(counts: Sequence[tuple[int, int]]) -> tuple[float, tuple[float, float]]:
    """The mean of several groups' shares of right answers (macro accuracy), and its 95 % interval.

    The interval combines Wilson's of the groups (MOVER: G. Y. Zou, A. Donner, "Construction of confidence limits about
    effect measures: a general approach", Statistics in Medicine 27 (2008)), so that groups of few questions, or all
    right or all wrong ones, do not make it too narrow.

    Args:
        counts: (right, questions) of each group; at least one group, each of at least one question.
    """
    shares = [right / total for right, total in counts]
    limits = [confidence_interval(right, total) for right, total in counts]
    mean = sum(shares) / len(shares)
    down = math.sqrt(sum((share - low) ** 2 for share, (low, _) in zip(shares, limits, strict=True))) / len(shares)
    up = math.sqrt(sum((high - share) ** 2 for share, (_, high) in zip(shares, limits, strict=True))) / len(shares)
    return mean, (mean - down, mean + up)
