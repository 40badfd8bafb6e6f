"""The door for methods that drop visual tokens inside the language model while it reads a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel


class PrefillPruning(ABC):
    """What `VideoLanguageModel` asks of such a method; `liteframe.baselines.fastv` is one.

    Such a method looks at the question, so that nothing that was computed for one question serves another.
    """

    @abstractmethod
    def check(self, model: PreTrainedModel) -> None:
        """Raise InputError for a model that cannot be pruned so."""

    @abstractmethod
    def kept(self, slots: int, tokens_per_slot: int) -> int:
        """How many visual tokens are left of a video of `slots` slots."""

    @abstractmethod
    def applied(self, model: PreTrainedModel, visual: Bool[Tensor, " p"], keep: int) -> AbstractContextManager[None]:
        """While this is open, the model prunes the one prompt that it reads, and answers from what is left.

        Args:
            model: the whole model, batch of one.
            visual: True at the prompt's visual tokens.
            keep: how many of them are left.
        """
