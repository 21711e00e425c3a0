"""Transforms that choose a prompt and convert it to tokens."""

from collections.abc import Mapping
import dataclasses
from typing import Protocol

import numpy as np

from openpi.models import tokenizer as _tokenizer
from openpi.shared import errors
from openpi.transforms.base import DataDict
from openpi.transforms.base import DataTransformFn


@dataclasses.dataclass(frozen=True)
class InjectDefaultPrompt(DataTransformFn):
    """Add a prompt to samples without one. None changes nothing."""

    prompt: str | None

    def __call__(self, data: DataDict) -> DataDict:
        """Add `prompt` (0-d numpy string) unless the sample has one."""
        if self.prompt is None or "prompt" in data:
            return data
        return {**data, "prompt": np.asarray(self.prompt)}


@dataclasses.dataclass(frozen=True)
class PromptFromLeRobotTask(DataTransformFn):
    """Take the prompt from the dataset's task table."""

    # Task index -> instruction.
    tasks: Mapping[int, str]

    def __call__(self, data: DataDict) -> DataDict:
        """Add `prompt`.

        Raises:
            DataError: The sample has no task index, or the table has no such task.
        """
        if "task_index" not in data:
            raise errors.DataError("sample: 'task_index' is missing, so its prompt cannot be looked up")
        task_index = int(data["task_index"])
        prompt = self.tasks.get(task_index)
        if prompt is None:
            raise errors.DataError(f"dataset: found task_index={task_index}, expected one of {sorted(self.tasks)}")
        return {**data, "prompt": prompt}


def _take_prompt(data: DataDict) -> tuple[str, DataDict]:
    """Split a sample into its prompt and the rest."""
    rest = dict(data)
    prompt = rest.pop("prompt", None)
    if prompt is None:
        raise errors.DataError("sample: 'prompt' is missing. Send one or set a default prompt")
    if isinstance(prompt, np.ndarray) and prompt.size == 1:
        prompt = prompt.item()
    if not isinstance(prompt, str):
        raise errors.DataError(f"prompt: found {type(prompt).__name__}, expected one string")
    return prompt, rest


@dataclasses.dataclass(frozen=True)
class TokenizePrompt(DataTransformFn):
    """Replace `prompt` by `tokenized_prompt` (int64 [l]) and `tokenized_prompt_mask` (bool [l])."""

    tokenizer: _tokenizer.PaligemmaTokenizer
    # Whether the (normalized) state is part of the text, as in pi0.5.
    discrete_state_input: bool = False

    def __call__(self, data: DataDict) -> DataDict:
        """Tokenize the prompt.

        Raises:
            DataError: There is no prompt, or no state where one is needed.
        """
        prompt, rest = _take_prompt(data)
        if self.discrete_state_input and "state" not in rest:
            raise errors.DataError("sample: 'state' is missing, which is part of this model's prompt")
        tokens, mask = self.tokenizer.tokenize(prompt, rest["state"] if self.discrete_state_input else None)
        return {**rest, "tokenized_prompt": tokens, "tokenized_prompt_mask": mask}


class ActionTokenizer(Protocol):
    """Converts text, state and actions to FAST tokens, and back."""

    def tokenize(
        self, prompt: str, state: np.ndarray, actions: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return tokens, token mask, autoregression mask and loss mask, each [l]."""
        ...

    def extract_actions(self, tokens: np.ndarray, action_horizon: int, action_dim: int) -> np.ndarray:
        """Return the actions [action_horizon, action_dim] that generated tokens stand for."""
        ...


@dataclasses.dataclass(frozen=True)
class TokenizeFASTInputs(DataTransformFn):
    """Replace `prompt` by the four token arrays of pi0-FAST.

    Any `actions` are tokenized too, and stay.
    """

    tokenizer: ActionTokenizer

    def __call__(self, data: DataDict) -> DataDict:
        """Tokenize the prompt, the state and any actions.

        Raises:
            DataError: There is no prompt.
        """
        prompt, rest = _take_prompt(data)
        tokens, mask, ar_mask, loss_mask = self.tokenizer.tokenize(prompt, rest["state"], rest.get("actions"))
        return {
            **rest,
            "tokenized_prompt": tokens,
            "tokenized_prompt_mask": mask,
            "token_ar_mask": ar_mask,
            "token_loss_mask": loss_mask,
        }


@dataclasses.dataclass(frozen=True)
class ExtractFASTActions(DataTransformFn):
    """Replace generated tokens in `actions` by the actions they stand for."""

    tokenizer: ActionTokenizer
    action_horizon: int
    action_dim: int

    def __call__(self, data: DataDict) -> DataDict:
        """Decode the actions, if the sample has any."""
        if "actions" not in data:
            return data
        # The model returns ids as floats.
        tokens = np.asarray(data["actions"]).astype(np.int32)
        return {**data, "actions": self.tokenizer.extract_actions(tokens, self.action_horizon, self.action_dim)}
