"""Training configs of the RealMan dual-arm robot.

The robot has two RM65 arms with one gripper each.

`openpi.training.config` registers them. It imports this module late, because the data config below derives from one of
its classes.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import pi0_fast
from openpi.policies import realman_policy
from openpi.training import weight_loaders
import openpi.training.config as _config
import openpi.transforms as _transforms

DEFAULT_REPO_ID = "realman/dual_arm"
# Rate of the recordings, Hz, where the dataset does not say another. A horizon of 50 steps then covers one second.
DEFAULT_FPS = 50
_WRIST_CAMERAS = ("cam_left_wrist", "cam_right_wrist")


@dataclasses.dataclass(frozen=True)
class LeRobotRealmanDataConfig(_config.DataConfigFactory):
    """A LeRobot dataset of the RealMan dual-arm robot.

    It has 14 numbers, right arm first, and up to four cameras.
    """

    # LeRobot dataset id, the folder below $HF_LEROBOT_HOME or ./data/lerobot.
    repo_id: str = DEFAULT_REPO_ID
    # Train the 12 joints on differences from the current state. Grippers stay absolute.
    use_delta_joint_actions: bool = True
    # Prompt of clients that send none. Training prompts come from the dataset's tasks.
    default_prompt: str | None = None
    # Order of the arms in the dataset and on the wire: right_left or left_right.
    arm_order: str = "right_left"
    # Camera of the base image slot: cam_high or cam_low.
    base_camera: str = "cam_high"
    # Dataset key of the actions.
    action_sequence_keys: Sequence[str] = ("action",)

    def contract(self) -> dict[str, Any]:
        """Return what a server announces because of arm order and cameras."""
        return {"dim_names": _dim_names(self.arm_order), "cameras": [self.base_camera, *_WRIST_CAMERAS]}

    def create(self, assets_dirs: pathlib.Path, model_config: _model.BaseModelConfig) -> _config.DataConfig:
        """Build repack, robot and model transforms."""
        # Repack only the cameras that are used, so that no others are decoded.
        cameras = (self.base_camera, *_WRIST_CAMERAS)
        repack = _transforms.RepackTransform(
            {
                "images": {camera: f"observation.images.{camera}" for camera in cameras},
                "state": "observation.state",
                "actions": self.action_sequence_keys[0],
                "prompt": "prompt",
            }
        )
        data_transforms = _transforms.Group(
            inputs=[
                realman_policy.RealmanInputs(
                    model_type=model_config.model_type, arm_order=self.arm_order, base_camera=self.base_camera
                )
            ],
            outputs=[realman_policy.RealmanOutputs(arm_order=self.arm_order)],
        )
        if self.use_delta_joint_actions:
            data_transforms = data_transforms.push(
                inputs=[_transforms.DeltaActions(realman_policy.DELTA_MASK)],
                outputs=[_transforms.AbsoluteActions(realman_policy.DELTA_MASK)],
            )
        return dataclasses.replace(
            self.create_base_config(assets_dirs, model_config),
            repack_transforms=_transforms.Group(inputs=[repack]),
            data_transforms=data_transforms,
            model_transforms=_config.ModelTransformFactory(default_prompt=self.default_prompt)(model_config),
            action_sequence_keys=self.action_sequence_keys,
            prompt_from_task=True,
        )


def _dim_names(arm_order: str) -> list[str]:
    names, half = list(realman_policy.DIM_NAMES), realman_policy.NUM_DIMS // 2
    return names if arm_order == "right_left" else names[half:] + names[:half]


def policy_metadata(
    action_horizon: int, base_camera: str = "cam_high", *, arm_order: str = "right_left", fps: float = DEFAULT_FPS
) -> dict[str, Any]:
    """Return what a policy server sends its clients about this robot.

    Only plain values are allowed, because they go over the wire. A server replaces those that a training's data and flags changed.
    """
    return {
        "robot": "realman_rm65_dual",
        "dim_names": _dim_names(arm_order),
        "cameras": [base_camera, *_WRIST_CAMERAS],
        "action_chunk": realman_policy.ACTION_CHUNK,
        "action_horizon": action_horizon,
        "fps": fps,
        "units": {"joints": "rad", "grippers": "0..1, 1 = open"},
    }


def _realman_config(name: str, model: Any, base_checkpoint: str, **overrides: Any) -> _config.TrainConfig:
    return _config.TrainConfig(
        name=name,
        model=model,
        data=LeRobotRealmanDataConfig(),
        weight_loader=weight_loaders.CheckpointWeightLoader(f"gs://openpi-assets/checkpoints/{base_checkpoint}/params"),
        num_train_steps=20_000,
        policy_metadata=policy_metadata(model.action_horizon),
        **overrides,
    )


def get_realman_configs() -> list[_config.TrainConfig]:
    """Build the configs: three model families, whole and with low-rank adapters.

    Hardware needs and results have not been measured. By the size of parameters, gradients, optimizer and average, full
    fine-tuning needs 70 GB of accelerator memory or several devices (--fsdp-devices), and adapters need 24 GB.
    """
    adapters = {"paligemma_variant": "gemma_2b_lora", "action_expert_variant": "gemma_300m_lora"}
    fast = {"action_dim": 14, "action_horizon": 50, "max_token_len": 300}
    whole = [
        ("pi0_realman", pi0_config.Pi0Config(), "pi0_base"),
        ("pi05_realman", pi0_config.Pi0Config(pi05=True), "pi05_base"),
        ("pi0_fast_realman", pi0_fast.Pi0FASTConfig(**fast), "pi0_fast_base"),
    ]
    low_rank = [
        ("pi0_realman_lora", pi0_config.Pi0Config(**adapters), "pi0_base"),
        ("pi05_realman_lora", pi0_config.Pi0Config(pi05=True, **adapters), "pi05_base"),
        ("pi0_fast_realman_lora", pi0_fast.Pi0FASTConfig(paligemma_variant="gemma_2b_lora", **fast), "pi0_fast_base"),
    ]
    configs = [_realman_config(*row) for row in whole]
    # Adapters are few and learn fast, so an average would only lag behind.
    configs += [_realman_config(*row, freeze_filter=row[1].get_freeze_filter(), ema_decay=None) for row in low_rank]
    return configs
