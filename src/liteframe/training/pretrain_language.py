"""The language stages of the miniature: its projector and language model learn to read the frozen tower's tokens.

Two things make this cheap enough for two CPU cores:

* Frames are encoded once, into a bank; clips are recomposed from it (`data.needle_turns`).
* Many questions share one video's tokens. They sit behind it in one sequence, and the attention mask keeps them from
  seeing each other, so that each is exactly what a single question looks like when the model is used.

A stage may keep only some of each frame's tokens, at their true positions (as FLIP does with patches, arXiv
2212.00794).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydantic
import torch
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerBase
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLVisionModel

from liteframe.data.needle_art import COLOURS, NAMES
from liteframe.data.needle_frames import NOTHING
from liteframe.data.needle_turns import BANK_CLIP, Composition, bank_clip, compose, make_turns
from liteframe.data.questions import Needle
from liteframe.encoders.interface import PixelConfig
from liteframe.language.projector import pixel_shuffle
from liteframe.language.prompt import PromptBuilder, Slots
from liteframe.training.loop import LoopConfig
from liteframe.training.pretrain_vision import CellReader
from liteframe.video.transform import normalize, resize


class LanguageStageConfig(LoopConfig):
    """Settings of one language stage."""

    name: str = pydantic.Field(pattern="^[a-z][a-z0-9-]*$")
    """What it is called: its folder is OUTPUT/language-NAME."""
    text_layers: int = pydantic.Field(ge=1)
    """Blocks of the language model; more than in the stage before: copies that start as identity are put between."""
    batch: int = pydantic.Field(16, ge=1)
    """Videos a step."""
    frames: tuple[int, ...] = (4, 8, 16, 32)
    """Numbers of frames; each step takes one, short ones more often in the beginning."""
    tokens_per_frame: int = pydantic.Field(16, ge=1)
    """Tokens of each frame that are kept; those with a needle first."""
    turns: int = pydantic.Field(8, ge=1)
    """Questions behind each video."""
    most_needles: int = pydantic.Field(6, ge=1)
    """Most needles in a clip."""
    multiple_choice_share: float = 0.35
    """Share of questions with options."""
    spelled_share: float = 0.0
    """Share of those whose answer is the option's text and then its letter, instead of the letter alone."""
    list_share: float = 0.5
    """Share of videos with the question for everything that was shown: the densest lesson."""


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
    """Render and encode `clips` clips, or take them from `cache` if it holds as many."""
    planned = [bank_clip_needles(seed, index) for index in range(clips)]
    if cache.exists():
        features = load_file(cache)["features"]
        if len(features) == clips:
            return FrameBank(features, planned)
    rows = pixels.height // tower.config.patch_size[0]
    parts = []
    with torch.inference_mode():
        for index in track(range(clips), "frame bank", console=Console(stderr=True)):
            pictures, _ = bank_clip(seed, index)
            frames = resize(pictures, (pixels.height, pixels.width))
            patches = tower(normalize(frames, pixels.mean, pixels.std, torch.float32)).last_hidden_state[:, 1:]
            parts.append(pixel_shuffle(patches.unflatten(1, (rows, -1))).flatten(1, 2).half())
    features = torch.stack(parts)
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_file({"features": features}, cache)
    return FrameBank(features, planned)


def bank_clip_needles(seed: int, index: int) -> tuple[Needle, ...]:
    """The needles of `bank_clip` without drawing it."""
    from liteframe.data.needles import plan_needles

    return plan_needles(np.random.default_rng([0xBA, seed, index]), BANK_CLIP, training=True)


@torch.no_grad()
def start_projector(
    projector: InternVLMultiModalProjector,
    reader: CellReader,
    embeddings: nn.Embedding,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Start the projector so that a cell with a red star says "red" and "star" in the language model's own words.

    Its first hidden units are what the vision stage's reader found (name or colour, against "nothing"); each writes the
    embedding of its word. The language model then begins with a text to read instead of noise. In place.
    """
    projector.layer_norm.load_state_dict(reader.norm.state_dict())
    nothing = reader.names.weight[NOTHING], reader.names.bias[NOTHING]
    weights = torch.cat([reader.names.weight[1:], reader.colours.weight]) - nothing[0]
    biases = torch.cat([reader.names.bias[1:], reader.colours.bias]) - nothing[1]
    words = [*NAMES, *COLOURS]
    projector.linear_1.weight[: len(words)] = weights
    projector.linear_1.bias[: len(words)] = biases
    for unit, word in enumerate(words):
        # The word as the first one of an answer and as a later one.
        ids = {tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in (word, f" {word}")}
        meaning = embeddings.weight[sorted(ids)].sum(0)
        # A reader is sure at a difference of about ten.
        projector.linear_2.weight[:, unit] = meaning / 10


@dataclass(frozen=True)
class PackedBatch:
    """Videos with their questions behind them, ready for the language model.

    Attributes:
        visual: float32 (b, v, 4d), kept tokens of all frames.
        ids: int64 (b, s), the prompt's text before and after the visual tokens; they stand between `lead` and the rest.
        lead: text tokens before the visual ones.
        positions: int64 (b, lead + v + s - lead).
        mask: bool (b, 1, p, p), True where a position may look.
        targets: int64 (b, p), the next token where it belongs to an answer, else -100.
    """

    visual: Float[Tensor, "b v c"]
    ids: Int[Tensor, "b s"]
    lead: int
    positions: Int[Tensor, "b p"]
    mask: Bool[Tensor, "b 1 p p"]
    targets: Int[Tensor, "b p"]


class LanguageModule(nn.Module):
    """What the language stages train: the projector and the language model, without the tower."""

    def __init__(self, model: InternVLForConditionalGeneration) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.language_model = model.model.language_model


class LanguageTask:
    """Next-token loss on answers only, many questions behind each video."""

    def __init__(
        self,
        model: InternVLForConditionalGeneration,
        prompts: PromptBuilder,
        bank: FrameBank,
        config: LanguageStageConfig,
    ) -> None:
        self.module = LanguageModule(model)
        self._head = model.lm_head
        self._prompts = prompts
        self._bank = bank
        self._config = config
        self._lead = self._ids("?")[0]

    def batch(self, step: int) -> PackedBatch:
        """The videos and questions of one step, a function of the seed and the step alone."""
        config = self._config
        rng = np.random.default_rng([0x1A, config.seed, step])
        # The longest clips come in during the first third of the run.
        reach = 1 + round(min(1.0, 3 * step / config.steps) * (len(config.frames) - 1))
        num_frames = config.frames[int(rng.integers(reach))]
        samples = []
        for _ in range(config.batch):
            clip = int(rng.integers(len(self._bank.needles)))
            composition = compose(rng, self._bank.needles[clip], num_frames, config.most_needles)
            turns = make_turns(
                rng,
                composition.needles,
                config.turns,
                config.multiple_choice_share,
                config.list_share,
                config.spelled_share,
            )
            kept = self._kept_tokens(rng, composition)
            samples.append((self._bank.features[clip, composition.frames], kept, turns))
        return self._pack(samples, num_frames)

    def _kept_tokens(self, rng: np.random.Generator, composition: Composition) -> Int[np.ndarray, "t k"]:
        """Which tokens of each frame stay, in order: all, or a random few with the needle's own among the first."""
        count = self._bank.features.shape[2]
        keep = min(self._config.tokens_per_frame, count)
        score = rng.random((len(composition.frames), count))
        if keep < count:
            side = round(count**0.5)
            for needle in composition.needles:
                # Half of the kept ones may be the needle's: it must stay a part of what is seen, not all of it.
                cells = needle_cells(needle, side)
                favoured = rng.permutation(cells)[: max(1, keep // 2)]
                score[needle.first_frame : needle.first_frame + needle.num_frames, favoured] += 1
        return np.sort(np.argsort(-score, axis=1)[:, :keep], axis=1)

    def _pack(
        self, samples: Sequence[tuple[Tensor, np.ndarray, list[tuple[str, str]]]], num_frames: int
    ) -> PackedBatch:
        lead, per_frame = self._lead, self._bank.features.shape[2]
        texts = [[self._ids(question)[1] + self._answer(answer) for question, answer in turns] for *_, turns in samples]
        after = max(sum(map(len, text)) for text in texts)
        visual = torch.stack(
            [
                f.gather(1, torch.from_numpy(k)[..., None].expand(-1, -1, f.shape[-1])).flatten(0, 1)
                for f, k, _ in samples
            ]
        ).float()
        seen, start = visual.shape[1], len(lead) + num_frames * per_frame
        total = len(lead) + seen + after
        ids = torch.full((len(samples), len(lead) + after), self._pad, dtype=torch.long)
        positions = torch.zeros(len(samples), total, dtype=torch.long)
        targets = torch.full((len(samples), total), -100)
        block = torch.full((len(samples), total), -1)
        ids[:, : len(lead)] = torch.tensor(lead)
        for row, ((_, kept, turns), text) in enumerate(zip(samples, texts, strict=True)):
            places = (np.arange(num_frames)[:, None] * per_frame + kept).ravel() + len(lead)
            positions[row, : len(lead) + seen] = torch.from_numpy(np.concatenate([np.arange(len(lead)), places]))
            block[row, : len(lead) + seen] = 0
            at = len(lead) + seen
            for number, (tokens, (_, answer)) in enumerate(zip(text, turns, strict=True), start=1):
                end = at + len(tokens)
                ids[row, at - seen : end - seen] = torch.tensor(tokens)
                positions[row, at:end] = torch.arange(start, start + len(tokens))
                answer_length = len(self._answer(answer))
                targets[row, end - answer_length - 1 : end - 1] = torch.tensor(tokens[-answer_length:])
                block[row, at:end] = number
                at = end
        return PackedBatch(visual, ids, len(lead), positions, _mask(block), targets)

    def loss(self, batch: PackedBatch) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy over answer tokens; also the share of them that is the likeliest token."""
        embed = self.module.language_model.get_input_embeddings()
        text = embed(batch.ids)
        visual = self.module.projector(batch.visual)
        inputs = torch.cat([text[:, : batch.lead], visual, text[:, batch.lead :]], dim=1)
        hidden = self.module.language_model(
            inputs_embeds=inputs, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        asked = batch.targets >= 0
        logits = self._head(hidden[asked])
        targets = batch.targets[asked]
        right = float((logits.argmax(-1) == targets).float().mean())
        return F.cross_entropy(logits, targets), {"right": right, "frames": float(batch.visual.shape[1])}

    @property
    def _pad(self) -> int:
        return int(self._prompts.tokenizer.pad_token_id)

    @lru_cache(maxsize=20000)  # noqa: B019 (one task a run)
    def _ids(self, question: str) -> tuple[list[int], list[int]]:
        """The prompt's ids before and after the visual tokens."""
        prompt = self._prompts.build(question, Slots(1), 1)
        at = int(prompt.visual.nonzero()[0])
        ids = prompt.ids.tolist()
        return ids[:at], ids[at + 1 :]

    @lru_cache(maxsize=20000)  # noqa: B019
    def _answer(self, answer: str) -> list[int]:
        tokenizer = self._prompts.tokenizer
        return [*tokenizer(answer, add_special_tokens=False)["input_ids"], int(tokenizer.eos_token_id)]


def needle_cells(needle: Needle, side: int) -> Int[np.ndarray, " k"]:
    """The cells of a side x side grid that the needle covers, row by row."""
    from liteframe.data.needle_frames import cell_labels

    names, _ = cell_labels(needle, BANK_CLIP.size, BANK_CLIP.size, (side, side))
    return np.flatnonzero(names.ravel() > 0)


def _mask(block: Int[Tensor, "b p"]) -> Bool[Tensor, "b 1 p p"]:
    """Causal; block 0 (the video) is seen by all, a question's block by itself only, padding (-1) by itself."""
    same = block[:, :, None] == block[:, None, :]
    video = (block[:, None, :] == 0) & (block[:, :, None] >= 0)
    causal = torch.ones(block.shape[1], block.shape[1], dtype=torch.bool).tril()
    return ((same | video) & causal)[:, None]
