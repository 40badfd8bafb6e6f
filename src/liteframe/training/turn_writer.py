"""Questions and answers as tokens behind a video, in the form that the model is asked in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from liteframe.data.needle_turns import Lesson
from liteframe.language.prompt import PromptBuilder, Slots
from liteframe.training.packing import TurnTokens, VideoTurns


class TurnWriter:
    """Writes lessons and conversations with one checkpoint's prompt.

    Args:
        prompts: of the checkpoint.
    """

    def __init__(self, prompts: PromptBuilder) -> None:
        self._prompts = prompts

    def prefix(self, slots: Slots, tokens_per_slot: int) -> list[int]:
        """Ids of the prompt up to the last visual token."""
        ids = self._prompts.build("?", slots, tokens_per_slot).ids.tolist()
        return ids[: _behind_video(ids, self._prompts.image_token_id)]

    @lru_cache(maxsize=20000)  # noqa: B019 (one writer a run)
    def lesson(self, lesson: Lesson) -> TurnTokens:
        """A lesson as it stands behind a video."""
        tokenizer = self._prompts.tokenizer
        ids = self._behind(lesson.prompt)
        closing = len(self._behind("?")) - len(self._behind("?", is_whole=False))
        if not lesson.is_whole:
            ids = ids[: len(ids) - closing]
        # Once a question's last word is out, its answer is known: from there on it is asked for. A deck of cards, which
        # has no end, has no question either.
        early = (closing if lesson.is_whole else 0) + 1 if lesson.ends else 0
        learned = [False] * len(ids)
        for text, learn in lesson.answer:
            piece = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += piece
            learned += [learn] * len(piece)
        return TurnTokens([*ids, int(tokenizer.eos_token_id)], [*learned, lesson.ends], early)

    def _behind(self, question: str, is_whole: bool = True) -> list[int]:
        """What stands behind the video; without what the template puts behind a question, if not `is_whole`."""
        ids = self._prompts.build(question, Slots(1), 1).ids.tolist()
        ids = ids[_behind_video(ids, self._prompts.image_token_id) :]
        if is_whole:
            return ids
        last = self._prompts.encode(question).tolist()[-1]
        return ids[: len(ids) - ids[::-1].index(last)]

    def lessons(self, lessons: Sequence[Lesson], slots: Slots, tokens_per_slot: int) -> VideoTurns:
        """A video with lessons that do not see each other."""
        return VideoTurns(self.prefix(slots, tokens_per_slot), [self.lesson(lesson) for lesson in lessons])

    def conversation(
        self,
        turns: Sequence[tuple[str, str]],
        slots: Slots,
        tokens_per_slot: int,
        system: str | None = None,
        is_chat: bool = True,
    ) -> VideoTurns:
        """A video with questions and answers, of which the answers and the ends of turns are learned.

        Args:
            is_chat: each turn sees those before it; else each sees the video alone.

        Raises:
            InputError, ConfigError: see `PromptBuilder.chat`.
        """
        parts = [turns] if is_chat else [[turn] for turn in turns]
        written = [self._chat(part, slots, tokens_per_slot, system) for part in parts]
        return VideoTurns(written[0][0], [tokens for _, tokens in written])

    def _chat(
        self, turns: Sequence[tuple[str, str]], slots: Slots, tokens_per_slot: int, system: str | None
    ) -> tuple[list[int], TurnTokens]:
        ids: list[int] = []
        learned: list[bool] = []
        for text, learn in self._prompts.chat(turns, slots, tokens_per_slot, system):
            piece = self._prompts.encode(text).tolist()
            ids += piece
            learned += [learn] * len(piece)
        at = _behind_video(ids, self._prompts.image_token_id)
        return ids[:at], TurnTokens(ids[at:], learned[at:])


def _behind_video(ids: Sequence[int], image_token_id: int) -> int:
    """The place behind the last visual token."""
    return max(at for at, token in enumerate(ids) if token == image_token_id) + 1
