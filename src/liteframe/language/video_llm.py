"""The language side of a Video LLM: projected visual tokens and a question in, words out.

Axis letters: ``slots`` groups of frames in the prompt, ``n`` language-model tokens per slot, ``p`` prompt positions,
``d`` the language model's width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TextStreamer

from liteframe.errors import ContextError, InputError
from liteframe.language.loading import Checkpoint
from liteframe.language.prefix import SharedPrefix, before_last_chunk, cache_argument, empty_cache, prefill
from liteframe.language.prompt import Dialogue, Prompt, Slots
from liteframe.language.pruning import PrefillPruning
from liteframe.packed import pack
from liteframe.runtime import Stopwatch
from liteframe.types import VideoTokens


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """A video as the language model sees it.

    Attributes:
        embeddings: floating (slots, n, d), in the language model's dtype.
        slots: which frames each slot stands for.
    """

    embeddings: Tensor
    slots: Slots

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 3 or len(self.embeddings) != len(self.slots):
            shape = tuple(self.embeddings.shape)
            raise ValueError(f"VisualTokens.embeddings is {shape}, not ({len(self.slots)} slots, n, d)")

    @property
    def num_tokens(self) -> int:
        """Language-model positions that the video takes, labels not counted."""
        return self.embeddings.shape[0] * self.embeddings.shape[1]

    def __repr__(self) -> str:
        slots, n, d = self.embeddings.shape
        return f"VisualTokens({slots} slots of {n} tokens, width {d})"


@dataclass(frozen=True)
class Generation:
    """Generated words and their cost.

    Attributes:
        text: the words; the pieces given to ``on_text`` make up exactly this.
        num_tokens: generated tokens, an end-of-turn token included.
        prefill_seconds: from the spliced prompt to the first token.
        generate_seconds: from the first token to the last.
        is_whole: whether the model ended it itself, and not the limit on its length.
    """

    text: str
    num_tokens: int
    prefill_seconds: float
    generate_seconds: float
    is_whole: bool


class VideoLanguageModel:
    """The projector and language model of a checkpoint.

    1. `project` takes an encoder's tokens into the language model's space.
    2. `check_fits` refuses a request that is longer than the context, before anything is decoded.
    3. `prompt` writes the text; `splice` puts the visual tokens into it.
    4. `generate` answers; `logits` is the same without sampling, for tests and training.

    Args:
        checkpoint: from `load_checkpoint`; its model is used as it is, not copied.
        reuse_prefix: keep the keys and values of the video that was asked about last, so that another question about
            the same `VisualTokens` only computes what is its own. They go with the `VisualTokens`. False, to measure.
        prefill_positions: read prompts in chunks of so many positions, which bounds what is computed on the way; None
            reads them in one, which measured faster on a CPU (docs/performance.md). Not with `pruning`.
        pruning: drops visual tokens while `generate` reads them; then there is no prefix to reuse.
        static_cache: set aside the keys and values of prompt and longest answer at once, instead of growing them with
            every token. On a GPU transformers then compiles the steps of the answer, which takes its time once for
            every length. Not with `pruning`.

    Raises:
        InputError: `pruning` does not fit the model, or goes with `static_cache`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reuse_prefix: bool = True,
        pruning: PrefillPruning | None = None,
        prefill_positions: int | None = None,
        static_cache: bool = False,
    ) -> None:
        if prefill_positions is not None and prefill_positions < 1:
            raise InputError(f"prefill_positions {prefill_positions}: give at least 1")
        if static_cache and pruning is not None:
            raise InputError("a static cache does not go with visual tokens that are dropped on the way")
        self.prefill_positions = prefill_positions
        self.static_cache = static_cache
        self.name = checkpoint.name
        self.model = pack(checkpoint.model)
        self.tokenizer = checkpoint.tokenizer
        self.family = checkpoint.family
        config = checkpoint.model.config
        self.prompts = self.family.prompts(checkpoint.tokenizer, checkpoint.prompt, config)
        self.max_positions = int(config.text_config.max_position_embeddings)
        self.prefix = SharedPrefix() if reuse_prefix and pruning is None else None
        self.pruning = pruning
        if pruning is not None:
            pruning.check(self.model)

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.model.device

    def tokens_per_slot(self, grid: tuple[int, int, int]) -> int:
        """Language-model tokens that one group of an encoder with this (t, h, w) grid becomes."""
        return self.family.tokens_per_slot(self.model.config, grid)

    def project(self, tokens: VideoTokens) -> Float[Tensor, "slots n d"]:
        """The checkpoint's own way from an encoder's features to the language model (`Family.project`)."""
        return self.family.project(self.model, tokens.features.to(self.device))

    def visual(self, tokens: VideoTokens) -> VisualTokens:
        """`project` without gradients, with what the prompt's labels need."""
        with torch.inference_mode():
            embeddings = self.project(tokens)
        return VisualTokens(embeddings, Slots(tokens.num_frames, tokens.group_size, tokens.seconds))

    def visual_tokens(self, visual: VisualTokens) -> int:
        """Visual tokens that an answer is read from: all of them, or what `pruning` leaves."""
        return visual.num_tokens if self.pruning is None else self.pruning.kept(*visual.embeddings.shape[:2])

    def count(self, question: str | Dialogue, slots: Slots, tokens_per_slot: int, max_new_tokens: int) -> int:
        """Positions that a request takes: prompt, visual tokens and the room for the answer.

        Raises:
            InputError: a question that is empty or holds the model's markers.
        """
        return self.prompts.count(question, slots, tokens_per_slot) + max_new_tokens

    def check_fits(self, question: str | Dialogue, slots: Slots, tokens_per_slot: int, max_new_tokens: int) -> int:
        """Refuse a request that is longer than the model's context; return the positions that it needs.

        Where labels show times and only expected ones are known, `needed` can be off by the digits of a time.

        Raises:
            ContextError: too long; it says how many frames would fit.
            InputError: a question that is empty or holds the model's markers.
        """
        self._check_words_fit(question)
        needed = self.count(question, slots, tokens_per_slot, max_new_tokens)
        if needed <= self.max_positions:
            return needed
        fits, too_many = 0, len(slots)
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            fewer = _fewer(slots, middle * slots.group_size)
            if self.count(question, fewer, tokens_per_slot, max_new_tokens) <= self.max_positions:
                fits = middle
            else:
                too_many = middle
        frames = fits * slots.group_size
        remedy = f"at most {frames} frames fit" if frames else "no frame fits; shorten the question or the answer"
        raise ContextError(
            f"{self.name}: {slots.num_frames} frames with this question and {max_new_tokens} new tokens need {needed} "
            f"tokens, and the model has {self.max_positions}; {remedy}",
            needed=needed,
            limit=self.max_positions,
            frames_that_fit=frames,
        )

    def _check_words_fit(self, question: str | Dialogue) -> None:
        """Refuse what is too long even if each token were the vocabulary's longest; see `check_fits`.

        Told without cutting it into tokens, which takes seconds for megabytes.
        """
        words = [question] if isinstance(question, str) else [question.question, *chain(*question.earlier)]
        least = sum(map(len, words)) // self._longest_token
        if least > self.max_positions:
            raise ContextError(
                f"{self.name}: the question alone needs at least {least} tokens, and the model has "
                f"{self.max_positions}; shorten it",
                needed=least,
                limit=self.max_positions,
                frames_that_fit=0,
            )

    @cached_property
    def _longest_token(self) -> int:
        """Characters of it, at least."""
        return max(map(len, self.tokenizer.get_vocab()))

    def prompt(self, visual: VisualTokens, question: str | Dialogue) -> Prompt:
        """The prompt of one question about one video; InputError for a question that cannot be asked."""
        return self.prompts.build(question, visual.slots, visual.embeddings.shape[1])

    def splice(self, visual: Float[Tensor, "slots n d"], prompt: Prompt) -> Float[Tensor, "1 p d"]:
        """The prompt's embeddings with the visual tokens at their positions; differentiable."""
        text = self.model.get_input_embeddings()(prompt.ids.to(self.device))
        places = prompt.visual.to(self.device)[:, None].expand_as(text)
        return text.masked_scatter(places, self.family.whole_video(self.model, visual).to(text.dtype))[None]

    def logits(self, visual: VisualTokens, question: str) -> Float[Tensor, "p vocabulary"]:
        """Next-token logits at every prompt position."""
        embeddings = self.splice(visual.embeddings, self.prompt(visual, question))
        return self.model(inputs_embeds=embeddings).logits[0]

    @torch.inference_mode()
    def generate(
        self,
        visual: VisualTokens,
        question: str | Dialogue,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """Answer one question.

        Args:
            visual: from `visual`; not consumed, several questions can share it, and the later ones are cheaper.
            question: plain words, or with what was said before.
            max_new_tokens: longest answer.
            temperature: 0 takes the likeliest token each time; above 0 samples.
            top_p: sample among the likeliest tokens that hold this much probability.
            seed: makes sampling reproducible without touching torch's global generators.
            on_text: called with each finished piece of the answer as it comes.

        Raises:
            InputError: an empty question, markers in the question, or settings out of range.
            ContextError: the request is longer than the model's context.
        """
        check_sampling(max_new_tokens, temperature, top_p)
        self._check_words_fit(question)
        prompt = self.prompt(visual, question)
        if len(prompt.ids) + max_new_tokens > self.max_positions:
            self.check_fits(question, visual.slots, visual.embeddings.shape[1], max_new_tokens)  # says what would fit
        stamps = _Stamps(self.tokenizer, Stopwatch(self.device), on_text)
        start = stamps.now()
        embeddings = self.splice(visual.embeddings, prompt)
        room = embeddings.shape[1] + max_new_tokens if self.static_cache else None
        cache = None if self.pruning is not None else empty_cache(self.model, room)
        if self.prefix is not None:
            cache = self.prefix.cache_for(visual, prompt, self.model, room)
        if cache is not None and self.prefill_positions is not None:
            # All but the last chunk; transformers reads that one, and its head is asked about the last position only.
            known = int(cache.get_seq_length())
            begin = before_last_chunk(embeddings.shape[1], known, self.prefill_positions)
            if begin > known:
                prefill(self.model.model.language_model, embeddings[:, :begin], cache, self.prefill_positions)
        devices = [self.device] if self.device.type == "cuda" else []
        pruned = (
            self.pruning.applied(self.model, prompt.visual, self.visual_tokens(visual))
            if self.pruning is not None
            else nullcontext()
        )
        with torch.random.fork_rng(devices, enabled=seed is not None), pruned:
            if seed is not None:
                torch.manual_seed(seed)
            self.model.generate(
                inputs_embeds=embeddings,
                attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=self.device),
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                temperature=temperature if temperature > 0 else 1.0,
                top_p=top_p if temperature > 0 else 1.0,
                top_k=0 if temperature > 0 else 50,
                eos_token_id=self.end_ids(),
                pad_token_id=self.end_ids()[0],
                streamer=stamps,
                **({cache_argument(self.model): cache} if cache is not None else {}),
            )
        end = stamps.now()
        if self.prefix is not None and cache is not None:
            self.prefix.keep(visual, prompt, cache)
        first = stamps.first if stamps.first is not None else end
        is_whole = stamps.last in self.end_ids()
        return Generation("".join(stamps.pieces), stamps.num_tokens, first - start, end - first, is_whole)

    def end_ids(self) -> list[int]:
        """Every id that ends an answer: the generation config's, the tokenizer's, and ChatML's end of turn."""
        stated = self.model.generation_config.eos_token_id
        ids = set(stated) if isinstance(stated, list) else {stated}
        ids |= {self.tokenizer.eos_token_id, self._end_of_turn}
        return sorted(token for token in ids if token is not None) or [-1]

    @cached_property
    def _end_of_turn(self) -> int | None:
        found: int | None = self.tokenizer.get_vocab().get("<|im_end|>")
        return found


class _Stamps(TextStreamer):
    """Collects an answer's pieces as transformers decodes them, and the time of the first token."""

    def __init__(self, tokenizer: object, watch: Stopwatch, on_text: Callable[[str], None] | None) -> None:
        super().__init__(
            tokenizer,
            skip_prompt=True,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        self.pieces: list[str] = []
        self.num_tokens = 0
        self.first: float | None = None
        self.last: int | None = None
        self._watch = watch
        self._on_text = on_text

    def now(self) -> float:
        """The time, once the device has done all that was asked of it."""
        self._watch.synchronize()
        return time.perf_counter()

    def put(self, value: Tensor) -> None:
        """Take the prompt (first call, empty here) or the next token."""
        if not self.next_tokens_are_prompt:
            self.num_tokens += value.numel()
            self.last = int(value.flatten()[-1])
            if self.first is None:
                self.first = self.now()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take a piece of text that later tokens will not change."""
        if text:
            self.pieces.append(text)
            if self._on_text is not None:
                self._on_text(text)


def _fewer(slots: Slots, num_frames: int) -> Slots:
    """The same span of video in fewer frames, evenly chosen."""
    seconds = slots.seconds
    if seconds is not None:
        seconds = seconds[((np.arange(num_frames) + 0.5) * len(seconds) / max(num_frames, 1)).astype(int)]
    return Slots(num_frames, slots.group_size, seconds)


def check_sampling(max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Raise InputError for generation settings that are out of range."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens {max_new_tokens}: give at least 1")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature {temperature}: give 0 (the likeliest token) or more")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p}: give a number above 0, at most 1")
