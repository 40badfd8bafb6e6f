"""From a model's words to right or wrong, and from counts to intervals. What cannot be parsed is wrong, and counted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from scipy.stats import binomtest

from liteframe.data.questions import LETTERS

_STOP = ".,;:!?\"'`*"
# Markdown, quotes and LaTeX around a letter say nothing: **B**, "B", [B] and \boxed{B} are B, B, (B) and (B).
_PLAIN = str.maketrans("[]{}", "()()", "*_`$\"'“”‘’")


def parse_choice(text: str, num_options: int) -> str | None:
    """The option letter that `text` names, or None.

    The first class that hits decides: a letter alone at the start, one at the end, a phrase ("the answer is B"), "(A)",
    "A."; inside a class the last hit wins. Letters beyond the options do not count; small ones do only where they
    cannot be a word ("b", "b) blue", "(b)").
    """
    letters = LETTERS[:num_options]
    words = text.translate(_PLAIN).strip()
    bare = words.strip(_STOP + "() ")
    if len(bare) == 1 and bare.upper() in letters:
        return bare.upper()
    either = f"[{letters}{letters.lower()}]"
    patterns = (
        rf"^(?:\(?({either})(?:[).:]|\s*\n)|([{letters}]),)",
        rf"(?:^|[\s(:])([{letters}])[).!?]*$",
        # "the answer is a star" names no option, "the answer is a." does.
        r"(?i:answer|option|choice)(?:\s+(?:is|was|would\s+be|should\s+be|must\s+be))?\s*:?\s*"
        rf"(?:\(({either})\)|([{letters}])\b|({either})(?:[).,;:!?]|$))",
        rf"\(({either})\)",
        rf"(?:^|\s)([{letters}])[.]",
    )
    for pattern in patterns:
        hits = [letter for hit in re.finditer(pattern, words) for letter in hit.groups() if letter]
        if hits:
            return hits[-1].upper()
    return None


def normalized(text: str) -> str:
    """Lower case, single spaces, no article, no punctuation at the ends."""
    words = text.strip().strip(_STOP + " ").lower().split()
    while words and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(words)


def is_right(text: str, answer: str, options: Sequence[str] | None) -> bool | None:
    """Whether `text` gives `answer` (a text, also for multiple choice); None if it could not be parsed.

    Of multiple choice, an option's own text counts as well as its letter.
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
    return None if letter is None else options[LETTERS.index(letter)] == answer


def confidence_interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if total == 0:
        return (0.0, 1.0)
    interval = binomtest(right, total).proportion_ci(confidence_level=0.95, method="wilson")
    return (float(interval.low), float(interval.high))
