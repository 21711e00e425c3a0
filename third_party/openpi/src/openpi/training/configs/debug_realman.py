"""A RealMan config small enough to train from scratch on a laptop CPU; the demo and the tests use it."""

from openpi.models import gemma
from openpi.models import pi0_config
from openpi.training.misc import realman_config
from openpi.training.optimizer import AdamW
from openpi.training.optimizer import CosineDecaySchedule
from openpi.training.train_config import TrainConfig

_NUM_STEPS = 600


def get_configs() -> list[TrainConfig]:
    """Build the config: the pi0 architecture with small sizes, the same inputs, outputs and files as pi0_realman."""
    experts = {
        "paligemma_variant": gemma.Config(
            width=64, depth=3, mlp_dim=256, num_heads=4, num_kv_heads=1, head_dim=32, vocab_size=512
        ),
        "action_expert_variant": gemma.Config(
            width=64, depth=3, mlp_dim=256, num_heads=4, num_kv_heads=1, head_dim=32, vocab_size=512
        ),
    }
    model = pi0_config.Pi0Config(dtype="float32", vision_variant="mu/16", **experts)
    return [
        TrainConfig(
            name="debug_realman",
            exp_name="debug",
            model=model,
            data=realman_config.LeRobotRealmanDataConfig(),
            lr_schedule=CosineDecaySchedule(warmup_steps=50, peak_lr=1e-3, decay_steps=_NUM_STEPS, decay_lr=1e-5),
            optimizer=AdamW(),
            ema_decay=None,
            batch_size=16,
            num_train_steps=_NUM_STEPS,
            log_interval=20,
            save_interval=200,
            keep_period=None,
            wandb_enabled=False,
            policy_metadata=realman_config.policy_metadata(model.action_horizon),
        )
    ]
