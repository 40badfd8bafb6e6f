"""From a model's words to right or wrong, and from counts to intervals. What cannot be parsed is wrong, and counted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from scipy.stats import binomtest

_PHRASE = re.compile(r"(?:answer|option|choice)(?:\s+is|:)?\s*:?\s*\(?([A-Z])\b", re.IGNORECASE)
_STOP = ".,;:!?\"'`*"


def parse_choice(text: str, num_options: int) -> str | None:
    """The option letter that `text` names, or None.

    The first class that hits decides: a letter alone at the start, one at the end, a phrase ("the answer is B"), "(A)",
    "A."; inside a class the last hit wins. Letters beyond the options do not count.
    """
    letters = "ABCDEFGHIJ"[:num_options]
    words = text.strip()
    bare = words.strip(_STOP + "() ")
    if len(bare) == 1 and bare.upper() in letters:
        return bare.upper()
    patterns = (
        re.compile(rf"^\(?([{letters}])(?:[).:,]|\s*$)"),
        re.compile(rf"(?:^|[\s(])([{letters}])[)]?[.]?\s*$"),
        _PHRASE,
        re.compile(rf"\(([{letters}])\)"),
        re.compile(rf"(?:^|\s)([{letters}])[.]"),
    )
    for pattern in patterns:
        hits = [hit.upper() for hit in pattern.findall(words) if hit.upper() in letters]
        if hits:
            return hits[-1]
    return None


def normalized(text: str) -> str:
    """Lower case, single spaces, no article, no punctuation at the ends."""
    words = text.strip().strip(_STOP + " ").lower().split()
    while words and words[0] in ("a", "an", "the"):
        words = words[1:]
    return " ".join(words)


def is_right(text: str, answer: str, options: Sequence[str] | None) -> bool | None:
    """Whether `text` gives `answer` (a text, also for multiple choice); None if it could not be parsed."""
    if options is None:
        return normalized(text) == normalized(answer) if normalized(text) else None
    letter = parse_choice(text, len(options))
    if letter is not None:
        return options["ABCDEFGHIJ".index(letter)] == answer
    said = [option for option in options if normalized(option) == normalized(text)]
    return said[0] == answer if said else None


def confidence_interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if total == 0:
        return (0.0, 1.0)
    interval = binomtest(right, total).proportion_ci(confidence_level=0.95, method="wilson")
    return (float(interval.low), float(interval.high))
