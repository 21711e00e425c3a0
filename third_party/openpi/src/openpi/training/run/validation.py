"""Validate a model on episodes that it is not trained on.

The figures are its loss, and the error of the actions that it would take. Frames, noise and times are the same in every
validation, so that two values differ only because of the model.
"""

from collections.abc import Mapping
import functools
import logging
import math
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from openpi.models import model as _model
from openpi.models import stacking
from openpi.training import data_loader as _data_loader
from openpi.training import sharding as _sharding
from openpi.training.configs.train_config import TrainConfig
from openpi.training.data_loader import Batch
from openpi.training.host import distributed
import openpi.transforms as _transforms

logger = logging.getLogger(__name__)

# The score that compares checkpoints: mean absolute error of sampled actions in normalized units. These units weigh joints
# and grippers alike and exist for every robot.
SCORE = "action_error"
LOSS = "valid_loss"
JOINT_ERROR = "joint_error_deg"
GRIPPER_ERROR = "gripper_error"

_SEED = 20_250_601


class NotFiniteError(ArithmeticError):
    """Raised when a figure of a validation is NaN or infinite."""

    def __init__(self, reason: str, batch: Batch) -> None:
        """Keep what a report needs.

        Args:
            reason: Which figures are not finite, and of how many samples.
            batch: The first batch with such a figure.
        """
        super().__init__(reason)
        self.reason = reason
        self.batch = batch


class Validation:
    """Scores parameters on the episodes that a config keeps out of training."""

    def __init__(
        self, config: TrainConfig, mesh: jax.sharding.Mesh, loader: _data_loader.DataLoader, model_def: nnx.GraphDef
    ) -> None:
        """Prepare the validation.

        Nothing is compiled before the first `run`.
        """
        self._loader = loader
        self._mesh = mesh
        self._dims = _Dims(config.policy_metadata or {})
        data_config = loader.data_config()
        self._num_dims = len(data_config.norm_stats["actions"].mean)
        unnormalize = _transforms.Unnormalize(data_config.norm_stats, use_quantiles=data_config.use_quantile_norm)
        self._to_actions = _transforms.compose(data_config.model_transforms.outputs)
        self._to_robot = _transforms.compose([unnormalize, *data_config.data_transforms.outputs])
        replicated = _sharding.replicated_sharding(mesh)
        self._rng = distributed.replicate(jax.random.key(_SEED), replicated)
        self._judge = jax.jit(functools.partial(_judge, model_def), out_shardings=replicated)

    def run(self, params: nnx.State) -> dict[str, float]:
        """Return the loss, the score, and errors in the robot's units.

        The errors are those of each number, and the means over joints and over grippers.

        Args:
            params: The parameters that would be served.

        Raises:
            NotFiniteError: A figure is NaN or infinite.
        """
        start_s = time.perf_counter()
        losses, scores, errors = [], [], []
        broken: Batch | None = None
        for index, batch in enumerate(self._loader):
            with _sharding.set_mesh(self._mesh):
                judged = self._judge(params, self._rng, index, batch)
            loss, found, states, wanted = jax.device_get(judged)
            losses.append(loss)
            # The score is in the model's normalized units, the errors are in the robot's.
            for state, sampled, true in zip(states, found, wanted, strict=True):
                sampled = self._to_actions({"state": state, "actions": sampled})["actions"]
                scores.append(np.abs(sampled - true)[:, : self._num_dims].mean())
                errors.append(np.abs(self._robot(state, sampled) - self._robot(state, true)).mean(axis=0))
            if broken is None and not _all_finite(loss, scores[-len(found) :], errors[-len(found) :]):
                broken = batch
        if broken is not None:
            raise NotFiniteError(_describe(losses, scores, errors), broken)
        metrics = {LOSS: float(np.mean(losses)), SCORE: float(np.mean(scores))}
        metrics |= self._dims.report(np.mean(errors, axis=0))
        logger.info(
            "validation on %d samples in %.1f s: %s", len(scores), time.perf_counter() - start_s, brief(metrics)
        )
        return metrics

    def _robot(self, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Convert normalized actions to the robot's, [ah, numbers]."""
        return np.asarray(self._to_robot({"state": np.copy(state), "actions": np.copy(actions)})["actions"])


def create(config: TrainConfig, mesh: jax.sharding.Mesh, model_def: nnx.GraphDef) -> Validation | None:
    """Create the validation of a config.

    The result is None if the config keeps no episodes out of training.
    """
    num_batches = math.ceil(config.validation_samples / config.batch_size)
    loader = _data_loader.create_validation_loader(
        config, sharding=_sharding.data_sharding(mesh), num_batches=num_batches
    )
    return None if loader is None else Validation(config, mesh, loader, model_def)


def _judge(
    model_def: nnx.GraphDef, params: nnx.State, rng: jax.Array, index: int, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return the loss, sampled actions, states and recorded actions of a batch."""
    observation, actions = batch
    model: _model.BaseModel = nnx.merge(model_def, params)
    loss_rng, sample_rng = jax.random.split(jax.random.fold_in(rng, index))
    with stacking.set_remat("none"):  # there is no backward pass
        loss = jnp.mean(model.compute_loss(loss_rng, observation, actions))
        sampled = model.sample_actions(sample_rng, _without_answer(observation))
    return loss, sampled, observation.state, actions


def _all_finite(*values: Any) -> bool:
    return all(bool(np.isfinite(each).all()) for each in values)


def _describe(losses: list[np.ndarray], scores: list[np.ndarray], errors: list[np.ndarray]) -> str:
    """Return a phrase with the figures that are not finite."""
    words = [] if _all_finite(losses) else [f"{LOSS} {np.mean(losses)}"]
    # The score may be finite where the robot's units are not.
    num_bad = sum(not _all_finite(*pair) for pair in zip(scores, errors, strict=True))
    words += [f"sampled actions not finite for {num_bad} of {len(scores)} samples"] if num_bad else []
    return "the validation has " + ", ".join(words)


def _without_answer(observation: _model.Observation) -> _model.Observation:
    """Hide the tokens that hold the recorded actions.

    The question is what may be read in both directions.
    """
    if observation.token_ar_mask is None:
        return observation
    is_question = observation.tokenized_prompt_mask & (observation.token_ar_mask == 0)
    return observation.replace(tokenized_prompt_mask=is_question)


def brief(metrics: Mapping[str, float]) -> str:
    """Return the main figures of a validation as a short phrase."""
    words = [f"loss {metrics[LOSS]:.4f}"]
    if JOINT_ERROR in metrics:
        joints = {key: value for key, value in metrics.items() if key.endswith("/deg")}
        worst = max(joints, key=joints.__getitem__)
        name = worst.split("/")[1]
        words.append(f"sampled actions off by {metrics[JOINT_ERROR]:.2f} deg (worst {name} {joints[worst]:.2f} deg)")
    else:
        words.append(f"sampled actions off by {metrics[SCORE]:.3f} (normalized)")
    if GRIPPER_ERROR in metrics:
        words.append(f"grippers by {metrics[GRIPPER_ERROR]:.3f}")
    return ", ".join(words)


class _Dims:
    """Names and units of the numbers of an action.

    They come from the config's policy metadata, where it has them.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._names = list(metadata.get("dim_names", ()))
        self._in_rad = metadata.get("units", {}).get("joints") == "rad"

    def report(self, errors: np.ndarray) -> dict[str, float]:
        """Return the errors by name.

        Joints are in degrees where their unit is known.
        """
        count = len(errors)
        names = self._names if len(self._names) == count else [f"dim_{i}" for i in range(count)]
        is_joint = [self._in_rad and names is self._names and "gripper" not in name for name in names]
        values = np.where(is_joint, np.rad2deg(errors), errors)
        each = {
            f"error/{name}/deg" if joint else f"error/{name}": float(value)
            for name, joint, value in zip(names, is_joint, values, strict=True)
        }
        grippers = [value for name, value in zip(names, values, strict=True) if "gripper" in name]
        summary = {JOINT_ERROR: float(values[is_joint].mean())} if any(is_joint) else {}
        return summary | ({GRIPPER_ERROR: float(np.mean(grippers))} if grippers else {}) | each
