"""Configs that try the training script: random data, few steps, nothing learned."""

from openpi.models import pi0_config
from openpi.training import weight_loaders
from openpi.training.configs.data_config import FakeDataConfig
from openpi.training.configs.train_config import TrainConfig


def get_configs() -> list[TrainConfig]:
    """Build the configs.

    The "dummy" language variants keep the full-size image tower, which takes 8 GiB with the optimizer.
    """
    # All three have small language models.
    dummy = {"paligemma_variant": "dummy", "action_expert_variant": "dummy"}
    return [
        TrainConfig(
            name="debug",
            data=FakeDataConfig(),
            model=pi0_config.Pi0Config(**dummy),
            batch_size=2,
            save_interval=100,
            num_train_steps=10,
            overwrite=True,
            exp_name="debug",
            wandb_enabled=False,
        ),
        TrainConfig(
            name="debug_restore",
            data=FakeDataConfig(),
            model=pi0_config.Pi0Config(**dummy),
            weight_loader=weight_loaders.CheckpointWeightLoader("./checkpoints/debug/debug/9/params"),
            batch_size=2,
            num_train_steps=10,
            overwrite=True,
            exp_name="debug",
            wandb_enabled=False,
        ),
        TrainConfig(
            name="debug_pi05",
            data=FakeDataConfig(),
            model=pi0_config.Pi0Config(pi05=True, **dummy),
            batch_size=2,
            num_train_steps=10,
            overwrite=True,
            exp_name="debug_pi05",
            wandb_enabled=False,
        ),
    ]
