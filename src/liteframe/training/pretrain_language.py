"""The language stages of the miniature: its projector and language model learn to read the frozen tower's tokens.

Two things make this cheap enough for two CPU cores:

* Frames are encoded once, into a bank; clips are recomposed from it (`data.needle_turns`).
* Many questions share one video's tokens. They sit behind it in one sequence, and the attention mask keeps them from
  seeing each other, so that each is exactly what a single question looks like when the model is used.

A stage may keep only some of each frame's tokens, at their true positions (as FLIP does with patches, arXiv
2212.00794). The first blocks learn from the narrator (`training.narration`) what happens in a video, before there is a
question at all; then the others learn, from questions and flash cards (`data.needle_turns`), to look it up. On the way
they must recall, wherever a text names a thing, what the video showed of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydantic
import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerBase
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel

from liteframe.data.needle_art import COLOURS, NAMES
from liteframe.data.needle_frames import NOTHING
from liteframe.data.needle_turns import (
    Composition,
    Lesson,
    bank_clip,
    bank_clip_needles,
    compose,
    flash_cards,
    make_turns,
    needle_cells,
)
from liteframe.data.questions import TASKS, Needle, TaskName
from liteframe.encoders.interface import PixelConfig
from liteframe.language.projector import pixel_shuffle
from liteframe.language.prompt import PromptBuilder, Slots
from liteframe.training.bank_file import kept_features
from liteframe.training.loop import LoopConfig
from liteframe.training.narration import UNTOLD, Judge, Narrator, Recall, tell_story
from liteframe.training.packing import PackedTurns, VideoTurns, pack_turns, splice
from liteframe.training.pretrain_vision import CellReader
from liteframe.training.turn_writer import TurnWriter
from liteframe.video.transform import normalize, resize


class LanguageStageConfig(LoopConfig):
    """Settings of one language stage."""

    name: str = pydantic.Field(pattern="^[a-z][a-z0-9-]*$")
    """What it is called: its folder is OUTPUT/language-NAME."""
    text_layers: int = pydantic.Field(ge=1)
    """Blocks of the language model; more than in the stage before: see `training.growth`."""
    text_width: int | None = pydantic.Field(None, ge=64, multiple_of=64)
    """Hidden size of the language model; none: that of the finished one."""
    batch: int = pydantic.Field(16, ge=1)
    """Most videos a step."""
    visual_tokens: int = pydantic.Field(8192, ge=1)
    """Most visual tokens a step, though at least one video: clips that are long come in smaller numbers."""
    frames: tuple[int, ...] = (4, 8, 16, 32)
    """Numbers of frames; each step takes one, short ones more often in the beginning."""
    tokens_per_frame: tuple[int, ...] = (16,)
    """Tokens of each frame that are kept, on a lattice; each step takes one."""
    text_tokens: int | None = pydantic.Field(None, ge=64)
    """Most tokens of questions, lists and cards behind each video: the more nearly it is reached, the less is padding.
    None: no limit."""
    turns: int = pydantic.Field(8, ge=0)
    """Questions behind each video; without any, cards and lists, the narrator alone teaches."""
    tasks: tuple[TaskName, ...] = pydantic.Field(TASKS, min_length=1)
    """What the questions are about, in turn; a task that stands there twice is asked twice as often."""
    most_needles: int = pydantic.Field(6, ge=1)
    """Most needles in a clip."""
    twin_share: float = 0.0
    """Share of clips in which several needles have one colour, so that a thing's second word must be looked up."""
    multiple_choice_share: float = 0.35
    """Share of questions with options."""
    spelled_share: float = 0.0
    """Share of those whose answer is the option's text and then its letter, instead of the letter alone."""
    drill_share: float = 0.0
    """Share of the questions that are asked without the chat template."""
    list_share: float = 0.5
    """Share of videos with the question for everything that was shown."""
    card_share: float = 0.0
    """Share of the decks of flash cards that are asked of a video."""
    narrated_blocks: int = pydantic.Field(4, ge=1)
    """Blocks of the language model before its story is told."""
    narration: float = 0.0
    """Weight of the loss of the story beside that of the answers, see `training.narration`."""
    recalled_blocks: int = pydantic.Field(6, ge=1)
    """Blocks before what is recalled where a thing is named."""
    recall: float = 0.0
    """Weight of the loss of what is recalled where a thing is named."""
    judged_blocks: int = pydantic.Field(9, ge=1)
    """Blocks before each lettered option is judged."""
    judging: float = 0.0
    """Weight of the loss of those verdicts."""

    @pydantic.model_validator(mode="after")
    def _check_blocks(self) -> LanguageStageConfig:
        asked = (self.narration, "narrated_blocks"), (self.recall, "recalled_blocks"), (self.judging, "judged_blocks")
        for weight, name in asked:
            if weight and getattr(self, name) > self.text_layers:
                raise ValueError(
                    f"stage '{self.name}': text_layers {self.text_layers} is fewer than {name} {getattr(self, name)}"
                )
        return self


@dataclass(frozen=True)
class FrameBank:
    """Encoded frames of the bank's clips.

    Attributes:
        features: float16 (clips, 48, n, 4d): pixel-shuffled, not projected.
        needles: of each clip.
    """

    features: Tensor
    needles: list[tuple[Needle, ...]]


def build_bank(tower: InternVLVisionModel, clips: int, seed: int, pixels: PixelConfig, cache: Path) -> FrameBank:
    """Render and encode `clips` clips, or take them from `cache` if they are those of this tower and seed."""

    @torch.inference_mode()
    def encode() -> Tensor:
        rows = pixels.height // tower.config.patch_size[0]
        parts = []
        for index in track(range(clips), "frame bank", console=Console(stderr=True)):
            pictures, _ = bank_clip(seed, index)
            frames = resize(pictures, (pixels.height, pixels.width))
            patches = tower(normalize(frames, pixels.mean, pixels.std, torch.float32)).last_hidden_state[:, 1:]
            parts.append(pixel_shuffle(patches.unflatten(1, (rows, -1))).flatten(1, 2).half())
        return torch.stack(parts)

    made_from = {"clips": clips, "pixels": pixels.model_dump(mode="json"), "seed": seed}
    features = kept_features(cache, tower.state_dict(), made_from, encode)
    return FrameBank(features, [bank_clip_needles(seed, index) for index in range(clips)])


@torch.no_grad()
def start_projector(
    projector: InternVLMultiModalProjector,
    reader: CellReader,
    embeddings: nn.Embedding,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Start the projector so that a cell with a red star says "red star", and an empty one "nothing". In place.

    Its first hidden units are what the vision stage's reader found (name or colour, against "nothing"); each writes the
    embedding of its word, and the other units write nothing yet. The language model then begins with a text to read
    instead of noise.
    """
    projector.layer_norm.load_state_dict(reader.norm.state_dict())
    nothing = reader.names.weight[NOTHING], reader.names.bias[NOTHING]
    weights = torch.cat([reader.names.weight[1:], reader.colours.weight]) - nothing[0]
    biases = torch.cat([reader.names.bias[1:], reader.colours.bias]) - nothing[1]
    words = [*NAMES, *COLOURS]
    projector.linear_1.weight[: len(words)] = weights
    projector.linear_1.bias[: len(words)] = biases
    projector.linear_2.weight.zero_()
    for unit, word in enumerate(words):
        # A reader is sure at a difference of about ten.
        projector.linear_2.weight[:, unit] = _meaning(word, embeddings, tokenizer) / 10
    # Not zero: the norm behind it would blow up whatever little else there is.
    projector.linear_2.bias.copy_(_meaning("nothing", embeddings, tokenizer))


def _meaning(word: str, embeddings: nn.Embedding, tokenizer: PreTrainedTokenizerBase) -> Float[Tensor, " d"]:
    """The word's embedding, as the first one of an answer and as a later one, summed."""
    ids = {tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in (word, f" {word}")}
    return embeddings.weight[sorted(ids)].sum(0)


@dataclass(frozen=True)
class LanguageBatch:
    """Videos with their turns, ready for the language model.

    Attributes:
        turns: the text, with a place for every kept visual token.
        visual: float32 (b, v, 4d), those tokens, not projected.
        story: int64 (b, v, 7), what is to be told at each visual token.
        recalled: int64 (b, p, 8), what is to be recalled at each token of the text, see `training.narration`.
        judged: int64 (b, p, 1), what is to be said of the options where they end.
    """

    turns: PackedTurns
    visual: Float[Tensor, "b v c"]
    story: Int[Tensor, "b v story"]
    recalled: Int[Tensor, "b p recall"]
    judged: Int[Tensor, "b p 1"]


class LanguageModule(nn.Module):
    """What the language stages train: the projector, the language model and its narrators, without the tower."""

    def __init__(
        self,
        model: InternVLForConditionalGeneration,
        narrator: Narrator,
        recaller: Narrator,
        judge: Narrator | None = None,
    ) -> None:
        super().__init__()
        self.narrator, self.recaller, self.judge = narrator, recaller, judge
        self.projector = model.model.multi_modal_projector
        self.language_model = model.model.language_model


class LanguageTask:
    """The narrators' losses, and the next-token loss on answers only, many questions behind each video."""

    def __init__(
        self,
        model: InternVLForConditionalGeneration,
        narrator: Narrator,
        recaller: Narrator,
        prompts: PromptBuilder,
        bank: FrameBank,
        config: LanguageStageConfig,
        judge: Narrator | None = None,
    ) -> None:
        if config.judging and judge is None:
            raise ValueError(f"stage '{config.name}' judges options and has no judge")
        self.module = LanguageModule(model, narrator, recaller, judge if config.judging else None)
        self._head = model.lm_head
        self._prompts = prompts
        self._writer = TurnWriter(prompts)
        self._recall, self._judge = Recall(prompts.tokenizer), Judge(prompts.tokenizer)
        self._bank = bank
        self._config = config
        self._lead = self._writer.prefix(Slots(1), 1)[:-1]

    def batch(self, step: int) -> LanguageBatch:
        """The videos and questions of one step, a function of the seed and the step alone."""
        config = self._config
        rng = np.random.default_rng([0x1A, config.seed, step])
        # The longest clips come in during the first third of the run.
        reach = 1 + round(min(1.0, 3 * step / config.steps) * (len(config.frames) - 1))
        num_frames = config.frames[int(rng.integers(reach))]
        per_frame = config.tokens_per_frame[int(rng.integers(len(config.tokens_per_frame)))]
        videos, visual, stories, shown, lessons = [], [], [], [], []
        for _ in range(max(1, min(config.batch, config.visual_tokens // (num_frames * per_frame)))):
            clip = int(rng.integers(len(self._bank.needles)))
            composition = compose(rng, self._bank.needles[clip], num_frames, config.most_needles, config.twin_share)
            turns = make_turns(
                rng,
                composition.needles,
                config.turns,
                config.multiple_choice_share,
                config.list_share,
                config.spelled_share,
                config.drill_share,
                config.tasks,
            )
            turns += [deck for deck in flash_cards(rng, composition.needles) if rng.random() < config.card_share]
            turns = self._within_limit(rng, turns)
            kept = self._kept_tokens(rng, composition, per_frame)
            features = self._bank.features[clip, composition.frames]
            chosen = torch.from_numpy(kept)[..., None].expand(-1, -1, features.shape[-1])
            visual.append(features.gather(1, chosen).flatten(0, 1).float())
            videos.append(self._video_turns(kept, turns))
            stories.append(tell_story(composition, kept, self._side))
            shown.append(composition.needles)
            lessons.append(turns)
        packed = pack_turns(videos, self._prompts.image_token_id, int(self._prompts.tokenizer.pad_token_id))
        recalls = [self._recall.facts(row.tolist(), needles) for row, needles in zip(packed.ids, shown, strict=True)]
        verdicts = [
            self._verdicts(video, turns, packed.ids.shape[1]) for video, turns in zip(videos, lessons, strict=True)
        ]
        told, recalled, judged = (torch.from_numpy(np.stack(facts)) for facts in (stories, recalls, verdicts))
        return LanguageBatch(packed, torch.stack(visual), told, recalled, judged)

    def _verdicts(self, video: VideoTurns, turns: Sequence[Lesson], length: int) -> Int[np.ndarray, "p 1"]:
        """What is to be judged in the video's row of `length` tokens."""
        parts = [np.full((len(video.prefix), 1), UNTOLD)]
        parts += [self._judge.verdicts(tokens.ids, turn.right) for tokens, turn in zip(video.turns, turns, strict=True)]
        told = np.concatenate(parts)
        return np.pad(told, ((0, length - len(told)), (0, 0)), constant_values=UNTOLD)

    def _within_limit(self, rng: np.random.Generator, turns: list[Lesson]) -> list[Lesson]:
        """As many of the turns, in random order, as there is room for."""
        room = self._config.text_tokens
        if room is None:
            return turns
        kept = []
        for at in rng.permutation(len(turns)).tolist():
            length = len(self._writer.lesson(turns[at]).ids)
            if length <= room:
                kept.append(turns[at])
                room -= length
        return kept

    def _kept_tokens(
        self, rng: np.random.Generator, composition: Composition, per_frame: int
    ) -> Int[np.ndarray, "t k"]:
        """Which tokens of each frame stay, in order: all, or those on a lattice that is the same in every frame.

        With every other row and column, say, a token's neighbours in time are still at fixed distances. Of the
        lattice's places, one is taken at random among those that show the most needles.
        """
        step = max(1, round((self._side**2 / per_frame) ** 0.5))
        lattices = []
        for row, column in np.ndindex(step, step):
            grid = np.zeros((self._side, self._side), bool)
            grid[row::step, column::step] = True
            cells = np.flatnonzero(grid)
            shows = sum(bool(np.isin(cells, needle_cells(needle, self._side)).any()) for needle in composition.needles)
            lattices.append((shows, rng.random(), cells))
        cells = max(lattices, key=lambda lattice: lattice[:2])[2]
        return np.tile(cells, (len(composition.frames), 1))

    def _video_turns(self, kept: Int[np.ndarray, "t k"], turns: Sequence[Lesson]) -> VideoTurns:
        """Kept tokens stay at the positions that they have among all."""
        lead, per_frame = self._lead, self._bank.features.shape[2]
        places = (np.arange(len(kept))[:, None] * per_frame + kept).ravel() + len(lead)
        return VideoTurns(
            prefix=[*lead, *[self._prompts.image_token_id] * kept.size],
            turns=[self._writer.lesson(turn) for turn in turns],
            positions=[*range(len(lead)), *places.tolist()],
            start=len(lead) + len(kept) * per_frame,
        )

    def loss(self, batch: LanguageBatch) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy over answer tokens, and the narrator's; also what share of each is right."""
        language_model, turns = self.module.language_model, batch.turns
        projected = self.module.projector(batch.visual).flatten(0, 1)
        output = language_model(
            inputs_embeds=splice(turns, language_model.get_input_embeddings(), projected),
            attention_mask=turns.mask,
            position_ids=turns.positions,
            use_cache=False,
            output_hidden_states=True,
        )
        narrator, recaller = self.module.narrator, self.module.recaller
        figures = {"tokens": float(batch.visual.shape[1])}
        loss = output.last_hidden_state.new_zeros(())
        if self._config.narration:
            told_at = output.hidden_states[self._config.narrated_blocks][turns.visual]
            narrated, figures["told"] = narrator(told_at, batch.story.flatten(0, 1))
            loss = loss + self._config.narration * narrated
        if self._config.recall:
            named = (batch.recalled != UNTOLD).any(-1)
            recalled, figures["recalled"] = recaller(
                output.hidden_states[self._config.recalled_blocks][named], batch.recalled[named]
            )
            loss = loss + self._config.recall * recalled
        if self.module.judge is not None:
            at_end = batch.judged[..., 0] != UNTOLD
            judged, figures["judged"] = self.module.judge(
                output.hidden_states[self._config.judged_blocks][at_end], batch.judged[at_end]
            )
            loss = loss + self._config.judging * judged
        asked = turns.targets >= 0
        if asked.any():
            logits, targets = self._head(output.last_hidden_state[asked]), turns.targets[asked]
            loss = loss + F.cross_entropy(logits, targets)
            figures["right"] = float((logits.argmax(-1) == targets).float().mean())
        return loss, figures

    @property
    def _side(self) -> int:
        return round(self._bank.features.shape[2] ** 0.5)
