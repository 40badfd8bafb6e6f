"""The miniature from nothing: a tutor, the vision tower, then the language model in stages of growing difficulty."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import torch
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from liteframe.config import Config
from liteframe.encoders.interface import PixelConfig
from liteframe.errors import ConfigError
from liteframe.language.loading import Checkpoint, load_checkpoint, save_checkpoint
from liteframe.language.places import find_checkpoint
from liteframe.language.prompt import PromptBuilder, PromptConfig
from liteframe.packed import pack
from liteframe.runtime import machine_facts, seed_everything
from liteframe.training.checkpoint import load_weights
from liteframe.training.growth import grow_into, grow_narrator
from liteframe.training.loop import LoopConfig, Task, train
from liteframe.training.miniature import MiniatureConfig, build_model, build_tokenizer
from liteframe.training.narration import RECALL, VERDICT, Narrator
from liteframe.training.pretrain_language import LanguageStageConfig, LanguageTask, build_bank, start_projector
from liteframe.training.pretrain_vision import CellReader, Tutor, TutorTask, VisionStageConfig, VisionTask
from liteframe.training.record import command_line, curve, finished_record, move_into, write_record


class StartConfig(Config):
    """Weights to go on from, so that a stage can be tried, or added, without the hours before it."""

    model: str
    """A finished miniature of the recipe's shape: "mini" or a folder. Its tower is taken over as it is, and its stages
    stand in the record before those that follow."""
    stage: str
    """The first of the recipe's language stages that is still to come."""


class PretrainRecipe(Config):
    """Everything that decides the miniature's weights."""

    output: str
    """Folder of the run: checkpoints, logs, and at the end the model."""
    seed: int = 0
    """Of the initial weights; the stages have their own."""
    model: MiniatureConfig = MiniatureConfig()
    """Its shape."""
    bank_clips: int = 800
    """Clips of 48 frames whose features are kept for the language stages."""
    start: StartConfig | None = None
    """None: from nothing. Else from finished weights; narrators, which are no part of those, begin anew."""
    tutor: VisionStageConfig
    """Stage 0: a convolutional network that the tower imitates; it is not part of the model."""
    vision: VisionStageConfig
    """Stage 1."""
    language: tuple[LanguageStageConfig, ...] = pydantic.Field(min_length=1)
    """Stages 2, 3, ...: from the story of short clips to all questions on all tokens of long ones."""

    @pydantic.model_validator(mode="after")
    def _check_stages(self) -> PretrainRecipe:
        stages = self.language
        if len({stage.name for stage in stages}) < len(stages):
            raise ValueError("two stages have the same name")
        for before, after in itertools.pairwise(stages):
            for name, old, new in zip(
                ("text_layers", "text_width"), self.shape(before), self.shape(after), strict=True
            ):
                if new < old:
                    raise ValueError(f"stage '{after.name}': {name} {new} is fewer than the {old} of '{before.name}'")
        if self.start and self.start.stage not in [stage.name for stage in stages]:
            raise ValueError(f"start.stage '{self.start.stage}': no such language stage")
        if self.start and self.shape(self.after_start()[0]) != self.shape(stages[-1]):
            raise ValueError(f"start.stage '{self.start.stage}': is narrower or has fewer blocks than finished weights")
        if self.shape(stages[-1])[1] != self.model.text_width:
            raise ValueError(f"stage '{stages[-1].name}', the last, must have model.text_width {self.model.text_width}")
        return self

    def after_start(self) -> tuple[LanguageStageConfig, ...]:
        """The language stages to be run."""
        names = [stage.name for stage in self.language]
        return self.language[names.index(self.start.stage) if self.start else 0 :]

    def shape(self, stage: LanguageStageConfig) -> tuple[int, int]:
        """Blocks and width of the language model in a stage."""
        return stage.text_layers, stage.text_width or self.model.text_width

    def build(self, stage: LanguageStageConfig, tokenizer: PreTrainedTokenizerFast) -> InternVLForConditionalGeneration:
        """An untrained model of the stage's shape; its MLP is as many times as wide as the finished model's."""
        layers, width = self.shape(stage)
        mlp = self.model.text_mlp * width // self.model.text_width
        return build_model(self.model.model_copy(update={"text_width": width, "text_mlp": mlp}), tokenizer, layers)


def pretrain(recipe_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run a recipe, or go on where its `output` folder left off, or report what a finished one holds.

    Returns:
        the training record, as written to ``OUTPUT/training.json``.

    Raises:
        ConfigError: a recipe that cannot be used.
        TrainingError: the loss stopped being a number.
    """
    recipe = PretrainRecipe.from_toml(recipe_path, overrides)
    output = Path(recipe.output)
    if (finished := finished_record(output)) is not None:
        print(f"{output}: is finished; give --set output=... for another run", file=sys.stderr)
        return finished
    seed_everything(recipe.seed)
    pixels = PixelConfig(height=recipe.model.image_size, width=recipe.model.image_size)
    stages: dict[str, Any] = {}
    language = recipe.after_start()
    reader: CellReader | None = None
    if recipe.start is None:
        tokenizer = build_tokenizer(recipe.model.vocabulary)
        model = recipe.build(recipe.language[0], tokenizer)
        reader = _train_tower(recipe, model.model.vision_tower, pixels, stages)
    else:
        tokenizer, model = _finished(recipe, recipe.start.model)
    prompts = PromptBuilder(tokenizer, PromptConfig.named("bare"), model.config.image_token_id)
    tower = model.model.vision_tower
    pack(tower.requires_grad_(False).eval())
    bank = build_bank(tower, recipe.bank_clips, recipe.seed, pixels, output / "bank.safetensors")

    if reader is not None:
        start_projector(model.model.multi_modal_projector, reader, model.get_input_embeddings(), tokenizer)
    width = model.config.text_config.hidden_size
    narrator, recaller = Narrator(width), Narrator(width, RECALL)
    judge: Narrator | None = None
    for number, stage in enumerate(language, start=2 + len(recipe.language) - len(language)):
        text = model.config.text_config
        if recipe.shape(stage) != (text.num_hidden_layers, text.hidden_size):
            small, model = model, recipe.build(stage, tokenizer)
            grow_into(model, small)
            width = recipe.shape(stage)[1]
            narrator, recaller = grow_narrator(narrator, width), grow_narrator(recaller, width)
            judge = judge and grow_narrator(judge, width)
        if stage.judging and judge is None:
            judge = Narrator(width, VERDICT)
        name = f"language-{stage.name}"
        task = LanguageTask(model, narrator, recaller, prompts, bank, stage, judge)
        stages[name] = _stage(task, stage, output / name, f"{number} {name}")

    before = finished_record(find_checkpoint(recipe.start.model)) if recipe.start else None
    if before is not None:
        stages = {**before.pop("stages"), **stages}
    record = {
        "command": command_line("pretrain", recipe_path, overrides),
        "start": before,
        "recipe": recipe.model_dump(mode="json"),
        "machine": machine_facts(),
        "minutes": round(sum(stage["minutes"] for stage in stages.values()), 1),
        "stages": stages,
    }
    _export(model, tokenizer, prompts.config, pixels, output, record)
    return record


def _train_tower(
    recipe: PretrainRecipe, tower: InternVLVisionModel, pixels: PixelConfig, stages: dict[str, Any]
) -> CellReader:
    """The first two stages, noted in `stages`; returns the reader that has learned what the tower's cells show."""
    output = Path(recipe.output)
    tutor = Tutor(recipe.model.patch_grid, recipe.model.vision_width)
    stages["tutor"] = _stage(TutorTask(tutor, recipe.tutor, pixels), recipe.tutor, output / "tutor", "0 tutor")
    vision = VisionTask(tower, tutor, recipe.vision, pixels)
    stages["vision"] = _stage(vision, recipe.vision, output / "vision", "1 vision")
    return vision.module.reader


def _finished(recipe: PretrainRecipe, name: str) -> tuple[PreTrainedTokenizerFast, InternVLForConditionalGeneration]:
    """A finished miniature's tokenizer and model, in float32; ConfigError if it has not the recipe's shape."""
    found = load_checkpoint(name, "cpu", "float32")
    expected = recipe.build(recipe.language[-1], found.tokenizer).config
    for part in ("vision_config", "text_config"):
        has, wants = (getattr(config, part, None) for config in (found.model.config, expected))
        for size in ("hidden_size", "num_hidden_layers", "intermediate_size"):
            if getattr(has, size, None) != getattr(wants, size):
                raise ConfigError(
                    f"start.model {name}: its {part} has {size} {getattr(has, size, None)}, the recipe's last stage "
                    f"{getattr(wants, size)}; take weights of this recipe's shape"
                )
    return found.tokenizer, found.model


def _stage(task: Task, config: LoopConfig, output: Path, label: str) -> dict[str, Any]:
    """Train one stage, or what is left of it; return its minutes and its thinned-out curve."""
    load_weights(train(task, config, output, label), task.module)
    return {"steps": config.steps, **curve(output / "log.jsonl")}


def _export(
    model: InternVLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    prompt: PromptConfig,
    pixels: PixelConfig,
    output: Path,
    record: dict[str, Any],
) -> None:
    """Put the finished model into `output` as float16; the record comes last and marks it finished."""
    checkpoint = Checkpoint(model=model.eval(), tokenizer=tokenizer, prompt=prompt, pixels=pixels, name=output.name)
    folder = output / "export"
    save_checkpoint(checkpoint, folder, dtype=torch.float16)
    move_into(folder, output)
    write_record(output, record)
