"""The prompt: one labelled slot per group of frames, then the question, in the checkpoint's own chat template.

A slot is the place of one group's visual tokens. `PromptBuilder` writes the text, turns it into ids, and says at which
positions the visual tokens belong.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from pydantic import field_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from liteframe.config import Config
from liteframe.errors import ConfigError, InputError

FIELDS = ("index", "frame", "seconds", "end_seconds", "open", "close", "tokens")


class PromptConfig(Config):
    """How the video is written into the user's message. The default is transformers' ``InternVLProcessor`` text."""

    slot_format: str = "Frame{index}: {open}{tokens}{close}"
    """One slot. Fields: {index} its number from 1; {frame} the number of its first frame from 1; {seconds} and
    {end_seconds} the times of its first and last frame; {open} and {close} the checkpoint's <img> and </img>; {tokens}
    its visual tokens, exactly once."""
    separator: str = "\n"
    """Between slots."""
    ending: str = "\n"
    """Between the last slot and the question."""
    system: str | None = None
    """A system message; None leaves it to the chat template."""

    @field_validator("slot_format")
    @classmethod
    def _known_fields(cls, slot_format: str) -> str:
        """Refuse fields that no slot has, at load time and not in the middle of a run."""
        try:
            names = _fields(slot_format)
            unknown = [name for name in names if name not in FIELDS]
            if unknown:
                raise ConfigError(
                    f"slot_format {slot_format!r}: unknown field {{{unknown[0]}}}; known fields: {', '.join(FIELDS)}"
                )
            slot_format.format(index=1, frame=1, seconds=0.5, end_seconds=0.5, open="", close="", tokens="")
        except ValueError as error:
            raise ConfigError(f"slot_format {slot_format!r}: {error}") from None
        if names.count("tokens") != 1:
            raise ConfigError(f"slot_format {slot_format!r}: write {{tokens}} exactly once")
        return slot_format

    @classmethod
    def named(cls, name: str) -> PromptConfig:
        """A preset: ``internvl`` (model card), ``internvl-train`` (training code), ``timestamps``, ``bare``.

        Raises:
            ConfigError: no such preset.
        """
        if name not in PRESETS:
            raise ConfigError(f"prompt '{name}': unknown; use one of {', '.join(PRESETS)}")
        return cls.from_dict(PRESETS[name], source=f"prompt preset '{name}'")

    @property
    def needs_seconds(self) -> bool:
        """Whether a label shows time."""
        return bool({"seconds", "end_seconds"} & set(_fields(self.slot_format)))


def _fields(slot_format: str) -> list[str]:
    """The names in braces, in order. Raises ValueError for braces that do not match."""
    return [name for _, name, _, _ in string.Formatter().parse(slot_format) if name is not None]


PRESETS: dict[str, dict[str, Any]] = {
    "internvl": {},
    "internvl-train": {"slot_format": "Frame-{index}: {open}{tokens}{close}"},
    "timestamps": {"slot_format": "Frame{index} at {seconds:.1f}s: {open}{tokens}{close}"},
    "bare": {"slot_format": "{tokens}", "separator": ""},
}


def _behind(text: str, beginning: str) -> str:
    """What follows `beginning`. Raises ConfigError where `text` does not begin so."""
    if not text.startswith(beginning):
        raise ConfigError(
            "the chat template does not write a conversation as its beginning and what follows; use another template"
        )
    return text[len(beginning) :]


@dataclass(frozen=True, eq=False)
class Slots:
    """Which frames the slots of one video stand for.

    Attributes:
        num_frames: true frames.
        group_size: frames per slot; the last slot may hold fewer.
        seconds: float64 (num_frames,) presentation times, or None where unknown.
        notes: words that stand behind each slot, on a line of their own, "" for none; () for none at all.
    """

    num_frames: int
    group_size: int = 1
    seconds: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.notes and len(self.notes) != len(self):
            raise InputError(f"{len(self.notes)} notes for {len(self)} groups of frames; give one for each")

    def __len__(self) -> int:
        return (self.num_frames + self.group_size - 1) // self.group_size


@dataclass(frozen=True)
class Dialogue:
    """A question with what was said before it about the same video.

    Attributes:
        question: what is to be answered now.
        earlier: questions and answers before it, in order; the video is shown with the first.
        system: the instruction before all of them; None takes the prompt's own.
    """

    question: str
    earlier: tuple[tuple[str, str], ...] = ()
    system: str | None = None


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt in all its forms.

    Attributes:
        text: what the tokenizer saw, visual placeholders included.
        ids: int64 (p,) token ids.
        visual: bool (p,), True where a visual token belongs.
    """

    text: str
    ids: Tensor
    visual: Tensor


class PromptBuilder:
    """Writes prompts with one checkpoint's tokenizer and chat template.

    Args:
        tokenizer: the checkpoint's; must have a chat template.
        config: the form of the slots.
        image_token_id: the id of the visual placeholder, from the checkpoint's config (ids differ between checkpoints).
        tokens_behind: visual tokens behind those of the last slot, where there is one.
        in_parts: the chat template takes a message as a list of parts, the video one of them, and writes for that the
            placeholder, in whose place the slots are put; else a message is plain text that holds them.

    Raises:
        ConfigError: the tokenizer has no chat template, or lacks a marker that the slot format uses.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PromptConfig,
        image_token_id: int,
        *,
        tokens_behind: int = 0,
        in_parts: bool = False,
    ) -> None:
        if not tokenizer.chat_template:
            raise ConfigError("the tokenizer has no chat template (chat_template.jinja); a checkpoint for chat has one")
        if not 0 <= image_token_id < len(tokenizer):
            raise ConfigError(f"image_token_id {image_token_id} of the config is not in the tokenizer's vocabulary")
        self.tokenizer = tokenizer
        self.config = config
        self.image_token_id = image_token_id
        self.tokens_behind = tokens_behind
        self.in_parts = in_parts
        self.image_token = str(tokenizer.convert_ids_to_tokens(image_token_id))
        self._open = str(getattr(tokenizer, "start_image_token", None) or "<img>")
        self._close = str(getattr(tokenizer, "end_image_token", None) or "</img>")
        vocabulary = tokenizer.get_vocab()
        for field, marker in (("{open}", self._open), ("{close}", self._close)):
            if field in config.slot_format and marker not in vocabulary:
                raise ConfigError(f"slot_format uses {field}, but the tokenizer has no token {marker}")
        added = tokenizer.added_tokens_decoder.values()
        # Of the video and the question that were written last, with what they were written by: both come again.
        self._written: dict[int, tuple[PromptConfig, Slots, str]] = {}
        self._cut: tuple[tuple[Any, ...], str, Int64[np.ndarray, " p"]] | None = None
        self._special = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)

    def visual_text(self, slots: Slots, tokens_per_slot: int) -> str:
        """All slots with their placeholders, without what follows them. Unknown times are written as 0."""
        size, times = slots.group_size, slots.seconds
        if times is None:
            times = np.zeros(slots.num_frames)
        written = []
        for note in filter(None, slots.notes):
            self._check_words(note, "a text between the frames")
        for index in range(len(slots)):
            first, last = index * size, min((index + 1) * size, slots.num_frames) - 1
            written.append(
                self.config.slot_format.format(
                    index=index + 1,
                    frame=first + 1,
                    seconds=float(times[first]),
                    end_seconds=float(times[last]),
                    open=self._open,
                    close=self._close,
                    tokens=self.image_token * tokens_per_slot,
                )
            )
            if index + 1 == len(slots):
                written[-1] += self.image_token * self.tokens_behind
            if slots.notes and slots.notes[index]:
                ends_line = self.config.separator.startswith("\n") or index + 1 == len(slots)
                written[-1] += f"\n{slots.notes[index]}" + ("" if ends_line else "\n")
        return self.config.separator.join(written)

    def text(self, question: str | Dialogue, slots: Slots, tokens_per_slot: int, system: str | None = None) -> str:
        """The whole prompt as text, up to where the answer begins.

        Args:
            system: the instruction before it; None takes the dialogue's, else the config's.

        Raises:
            InputError: words that are empty, or that contain a token with a meaning of its own.
            ConfigError: the chat template does not write the message out.
        """
        return self._text(question, self.visual_text(slots, tokens_per_slot), system)

    def _text(self, question: str | Dialogue, visual: str, system: str | None = None) -> str:
        dialogue = question if isinstance(question, Dialogue) else Dialogue(question)
        for asked, answered in dialogue.earlier:
            self._check_words(asked, "an earlier question")
            self._check_words(answered, "an earlier answer")
        self._check_words(dialogue.question, "the question")
        system = dialogue.system if system is None else system
        system = self.config.system if system is None else system
        if system is not None:
            self._check_words(system, "the system message")
        shown = visual + self.config.ending if visual else ""
        messages = [("system", system)] if system is not None else []
        for asked, answered in dialogue.earlier:
            messages += [("user", asked), ("assistant", answered)]
        text = self._render([*messages, ("user", dialogue.question)], True, shown)
        if visual not in text or dialogue.question.strip() not in text:
            form = "in parts" if self.in_parts else "plain text"
            raise ConfigError(f"the chat template does not write out a message that is {form}; use another template")
        return text

    def build(self, question: str | Dialogue, slots: Slots, tokens_per_slot: int) -> Prompt:
        """The prompt for one question about one video; see `text` for the errors it raises."""
        # Placeholders never merge, so that one a slot is cut into tokens, and its id repeated.
        once = self._visual_text(slots, 1)
        short, ids = self._short(question, once)
        repeats = np.ones_like(ids)
        repeats[np.flatnonzero(ids == self.image_token_id)[: len(slots)]] = tokens_per_slot
        ids = np.repeat(ids, repeats)
        visual = ids == self.image_token_id
        expected = len(slots) * tokens_per_slot + (self.tokens_behind if len(slots) else 0)
        if int(visual.sum()) != expected:
            raise ConfigError(
                f"the prompt holds {int(visual.sum())} visual positions, not {expected}: check slot_format"
            )
        text = short.replace(once, self._visual_text(slots, tokens_per_slot), 1)
        return Prompt(text=text, ids=torch.from_numpy(ids), visual=torch.from_numpy(visual))

    def _short(self, question: str | Dialogue, visual: str) -> tuple[str, Int64[np.ndarray, " p"]]:
        """The text behind `visual`, and its ids, which are kept: a question is measured before it is asked."""
        key, kept = (question, visual, self.config, self.tokenizer.chat_template), self._cut
        if kept is None or kept[0] != key:
            short = self._text(question, visual)
            kept = self._cut = (key, short, np.array(self._ids(short), dtype=np.int64))
        return kept[1:]

    def _visual_text(self, slots: Slots, tokens_per_slot: int) -> str:
        """`visual_text`, which is kept: the next question is often about the same video."""
        kept = self._written.get(tokens_per_slot)
        if kept is None or kept[0] != self.config or not self._are_written_alike(kept[1], slots):
            kept = self._written[tokens_per_slot] = (self.config, slots, self.visual_text(slots, tokens_per_slot))
        return kept[2]

    def _are_written_alike(self, one: Slots, other: Slots) -> bool:
        if one is other:
            return True
        if (one.num_frames, one.group_size, one.notes) != (other.num_frames, other.group_size, other.notes):
            return False
        return not self.config.needs_seconds or (
            one.seconds is not None and other.seconds is not None and np.array_equal(one.seconds, other.seconds)
        )

    def chat(
        self, turns: Sequence[tuple[str, str]], slots: Slots, tokens_per_slot: int, system: str | None = None
    ) -> list[tuple[str, bool]]:
        """A whole conversation about one video as pieces of text: (piece, whether the model is to say it).

        The pieces up to an answer are what `text` writes for the first question; each answer is followed by the token
        that ends a turn, where the template writes one, and the model is to say that as well.

        Args:
            turns: questions and answers, in order.
            system: the instruction before them; None takes the config's.

        Raises:
            InputError: words that are empty or contain a token with a meaning of its own.
            ConfigError: a template that does not write the messages out one behind the other.
        """
        system = self.config.system if system is None else system
        messages = [("system", system)] if system is not None else []
        visual = self.visual_text(slots, tokens_per_slot) + self.config.ending if len(slots) else ""
        pieces: list[tuple[str, bool]] = []
        written = ""
        for number, (question, answer) in enumerate(turns):
            self._check_words(question, "the question")
            self._check_words(answer, "the answer")
            messages.append(("user", question))
            if number:
                prompt = self._render(messages, True, visual)
            else:
                prompt = self.text(question, slots, tokens_per_slot, system)
            messages.append(("assistant", answer))
            pieces += [(_behind(prompt, written), False), (answer, True)]
            behind = _behind(self._render(messages, False, visual), prompt + answer)
            end = next((token for token in sorted(self._special) if token and behind.startswith(token)), "")
            pieces += [(end, True)] if end else []
            written = prompt + answer + end
        return pieces

    def _render(self, messages: list[tuple[str, str]], is_asking: bool, shown: str) -> str:
        """The template's text of messages (role, words), with the video `shown` in the user's first."""
        first = next(place for place, (role, _) in enumerate(messages) if role == "user")
        chat: list[dict[str, Any]] = [{"role": role, "content": words} for role, words in messages]
        if self.in_parts:
            for message in chat:
                message["content"] = [{"type": "text", "text": message["content"]}]
            if shown:
                chat[first]["content"].insert(0, {"type": "video"})
        else:
            chat[first]["content"] = shown + chat[first]["content"]
        text = str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=is_asking))
        if not self.in_parts or not shown:
            return text
        if text.count(self.image_token) != 1:
            raise ConfigError(f"the chat template does not write {self.image_token} for a video; use another template")
        return text.replace(self.image_token, shown)

    def encode(self, text: str) -> Int64[Tensor, " p"]:
        """The ids of `text`, nothing added."""
        return torch.tensor(self._ids(text), dtype=torch.long)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def mask(self, ids: Int64[Tensor, " p"]) -> Bool[Tensor, " p"]:
        """Where visual tokens belong."""
        return ids == self.image_token_id

    def count(self, question: str | Dialogue, slots: Slots, tokens_per_slot: int) -> int:
        """The length of the prompt in tokens, without writing every placeholder: exact, since they never merge."""
        short = len(self.build(question, slots, 1).ids)
        return short + len(slots) * (tokens_per_slot - 1)

    def _check_words(self, words: str, what: str) -> None:
        """Refuse words that are empty or would be read as markers: a question must not open slots or end a turn."""
        if not words.strip():
            raise InputError(f"{what} is empty; write what you want to know")
        for token in sorted(self._special):
            if token and token in words:
                raise InputError(f"{what} contains {token}, which this model reads as a marker; leave it out")
