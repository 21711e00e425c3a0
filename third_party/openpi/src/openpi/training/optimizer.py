"""Learning-rate schedules and optimizers, as frozen configurations that build the optax object."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import optax

from openpi.shared import errors


@runtime_checkable
class LRScheduleConfig(Protocol):
    """A learning rate as a function of the step."""

    def create(self) -> optax.Schedule:
        """Build the schedule: step (counted from 0) to learning rate."""
        ...


def _warmup_start(peak_lr: float, warmup_steps: int) -> float:
    """Rate of step 0: one part of the `warmup_steps + 1` parts that the warm-up climbs through."""
    return peak_lr / (warmup_steps + 1)


@dataclasses.dataclass(frozen=True)
class CosineDecaySchedule(LRScheduleConfig):
    """Linear warm-up, then half a cosine down to `decay_lr`, then constant."""

    # Steps of the linear climb from peak_lr / (warmup_steps + 1) to peak_lr.
    warmup_steps: int = 1_000
    # Highest learning rate, reached at step warmup_steps.
    peak_lr: float = 2.5e-5
    # Step at which decay_lr is reached; counts from step 0, so it includes the warm-up.
    decay_steps: int = 30_000
    # Learning rate from decay_steps on.
    decay_lr: float = 2.5e-6

    def create(self) -> optax.Schedule:
        """Build the schedule.

        Raises:
            ConfigError: The decay would end before the warm-up does.
        """
        if self.decay_steps <= self.warmup_steps:
            raise errors.ConfigError(
                f"lr_schedule: decay_steps {self.decay_steps} must exceed warmup_steps {self.warmup_steps}, which it includes; "
                "raise --lr-schedule.decay-steps or lower --lr-schedule.warmup-steps"
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
    warmup_steps: int = 1_000
    # Highest learning rate, reached at step warmup_steps.
    peak_lr: float = 5e-5
    # Steps after the warm-up until the rate has fallen to peak_lr / sqrt(2).
    timescale: float = 10_000

    def create(self) -> optax.Schedule:
        """Build the schedule: peak_lr / sqrt((timescale + n) / timescale), n steps after the warm-up."""
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
        """Build the transformation for learning rate `lr`; the mask marks the leaves that decay (None: all)."""
        ...


@dataclasses.dataclass(frozen=True)
class AdamW(OptimizerConfig):
    """AdamW behind a clip of the global gradient norm."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    # Not zero only because some accelerator runtimes plan memory badly without the decay term; no visible effect.
    weight_decay: float = 1e-10
    # Gradients whose global L2 norm is larger are scaled down to it.
    clip_gradient_norm: float = 1.0

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
    """Stochastic gradient descent with momentum; the rate comes from the schedule."""

    # Kept for the command line's sake: the schedule given to create() decides.
    lr: float = 5e-5
    momentum: float = 0.9
    nesterov: bool = False

    def create(self, lr: optax.ScalarOrSchedule, weight_decay_mask: Any | None = None) -> optax.GradientTransformation:
        """Build SGD for learning rate `lr`.

        Raises:
            ConfigError: A weight-decay mask was given; SGD has no weight decay here.
        """
        if weight_decay_mask is not None:
            raise errors.ConfigError("optimizer SGD: has no weight decay, found a weight_decay_mask; leave it out")
        return optax.sgd(lr, momentum=self.momentum, nesterov=self.nesterov)


def create_optimizer(
    optimizer: OptimizerConfig, lr_schedule: LRScheduleConfig, weight_decay_mask: Any | None = None
) -> optax.GradientTransformation:
    """Join an optimizer with its schedule."""
    return optimizer.create(lr_schedule.create(), weight_decay_mask)
