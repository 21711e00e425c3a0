"""Learning-rate schedules and optimizers as configs that build optax objects."""

import dataclasses
from typing import Annotated, Any, Protocol, runtime_checkable

import jax.numpy as jnp
import optax

from openpi.shared import errors
from openpi.shared import ranges

LearningRate = Annotated[float, ranges.Range(0.0, 10.0, "every useful rate is smaller")]
PeakRate = Annotated[float, ranges.Range(1e-12, 10.0, "with 0 nothing is learned, and every useful rate is smaller")]
WarmupSteps = Annotated[int, ranges.Range(0, 1_000_000_000, "0 begins with the highest rate")]
# The average of an optimizer.
Momentum = Annotated[float, ranges.Range(0.0, 0.999999, "with 1 the average would never change")]


@runtime_checkable
class LRScheduleConfig(Protocol):
    """A learning rate as a function of the step."""

    def create(self) -> optax.Schedule:
        """Build the schedule, from step (counted from 0) to learning rate."""
        ...


def _warmup_start(peak_lr: float, warmup_steps: int) -> float:
    """Return the rate of step 0.

    The warm-up climbs in `warmup_steps + 1` equal parts, and this is the first one.
    """
    return peak_lr / (warmup_steps + 1)


@dataclasses.dataclass(frozen=True)
class CosineDecaySchedule(LRScheduleConfig):
    """Linear warm-up, then half a cosine down to `decay_lr`, then constant."""

    # Steps of the linear climb from peak_lr / (warmup_steps + 1) to peak_lr.
    warmup_steps: WarmupSteps = 1_000
    # Highest learning rate, reached at step warmup_steps.
    peak_lr: PeakRate = 2.5e-5
    # Step at which decay_lr is reached. It counts from step 0, so it includes the warm-up.
    decay_steps: ranges.Count = 30_000
    # Learning rate from decay_steps on.
    decay_lr: LearningRate = 2.5e-6

    def __post_init__(self) -> None:
        ranges.check(self, "lr_schedule")

    def create(self) -> optax.Schedule:
        """Build the schedule.

        Raises:
            ConfigError: The decay would end before the warm-up.
        """
        if self.decay_steps <= self.warmup_steps:
            raise errors.ConfigError(
                f"lr_schedule: decay_steps {self.decay_steps} must exceed warmup_steps {self.warmup_steps}, which it includes. "
                "Raise --lr-schedule.decay-steps or lower --lr-schedule.warmup-steps"
            )
        return optax.warmup_cosine_decay_schedule(
            init_value=_warmup_start(self.peak_lr, self.warmup_steps),
            peak_value=self.peak_lr,
            warmup_steps=self.warmup_steps,
            decay_steps=self.decay_steps,
            end_value=self.decay_lr,
        )


@dataclasses.dataclass(frozen=True)
class RsqrtDecaySchedule(LRScheduleConfig):
    """Linear warm-up, then decay with the inverse square root of the step."""

    # Steps of the linear climb from peak_lr / (warmup_steps + 1) to peak_lr.
    warmup_steps: WarmupSteps = 1_000
    # Highest learning rate, reached at step warmup_steps.
    peak_lr: PeakRate = 5e-5
    # Steps after the warm-up until the rate has fallen to peak_lr / sqrt(2).
    timescale: Annotated[float, ranges.Range(1.0, 1e9, "at least one step, and far more than any run has")] = 10_000

    def __post_init__(self) -> None:
        ranges.check(self, "lr_schedule")

    def create(self) -> optax.Schedule:
        """Build the schedule.

        The rate is peak_lr / sqrt((timescale + n) / timescale), n steps after the warm-up.
        """
        return optax.join_schedules(
            [
                optax.linear_schedule(
                    _warmup_start(self.peak_lr, self.warmup_steps), self.peak_lr, transition_steps=self.warmup_steps
                ),
                lambda step: self.peak_lr / jnp.sqrt((self.timescale + step) / self.timescale),
            ],
            [self.warmup_steps],
        )


@runtime_checkable
class OptimizerConfig(Protocol):
    """A gradient transformation that still lacks its learning rate."""

    def create(self, lr: optax.ScalarOrSchedule, weight_decay_mask: Any | None = None) -> optax.GradientTransformation:
        """Build the transformation for learning rate `lr`.

        The mask marks the leaves that decay. With None, all decay.
        """
        ...


@dataclasses.dataclass(frozen=True)
class AdamW(OptimizerConfig):
    """AdamW after clipping of the global gradient norm."""

    b1: Momentum = 0.9
    b2: Momentum = 0.95
    eps: Annotated[float, ranges.Range(1e-20, 1.0, "above 0, because gradients may be 0")] = 1e-8
    # Too small for a visible effect. It is not zero because some accelerator runtimes plan memory badly without decay.
    weight_decay: Annotated[float, ranges.Range(0.0, 10.0, "0 is without decay")] = 1e-10
    # Gradients whose global L2 norm is larger are scaled down to it.
    clip_gradient_norm: Annotated[float, ranges.Range(1e-6, 1e9, "above 0, and 1e9 is without clipping")] = 1.0

    def __post_init__(self) -> None:
        ranges.check(self, "optimizer")

    def create(self, lr: optax.ScalarOrSchedule, weight_decay_mask: Any | None = None) -> optax.GradientTransformation:
        """Build clip(norm), then AdamW with bias-corrected moments."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_gradient_norm),
            optax.adamw(
                lr, b1=self.b1, b2=self.b2, eps=self.eps, weight_decay=self.weight_decay, mask=weight_decay_mask
            ),
        )


@dataclasses.dataclass(frozen=True)
class SGD(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    # Kept only for the command line. The schedule given to create() decides.
    lr: LearningRate = 5e-5
    momentum: Momentum = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        ranges.check(self, "optimizer")

    def create(self, lr: optax.ScalarOrSchedule, weight_decay_mask: Any | None = None) -> optax.GradientTransformation:
        """Build SGD for learning rate `lr`.

        Raises:
            ConfigError: A weight-decay mask was given, but SGD has no weight decay here.
        """
        if weight_decay_mask is not None:
            raise errors.ConfigError(
                "optimizer SGD: found a weight_decay_mask, but it has no weight decay. Leave the mask out"
            )
        return optax.sgd(lr, momentum=self.momentum, nesterov=self.nesterov)


def create_optimizer(
    optimizer: OptimizerConfig, lr_schedule: LRScheduleConfig, weight_decay_mask: Any | None = None
) -> optax.GradientTransformation:
    """Join an optimizer with its schedule."""
    return optimizer.create(lr_schedule.create(), weight_decay_mask)
