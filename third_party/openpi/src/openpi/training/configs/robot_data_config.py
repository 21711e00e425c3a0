"""Data configs of the framework's own robots: ALOHA, LIBERO and DROID."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Annotated

import tyro

from openpi.models import model as _model
from openpi.policies import aloha_policy
from openpi.policies import droid_policy
from openpi.policies import libero_policy
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.data_config import DataConfigFactory
from openpi.training.configs.data_config import ModelTransformFactory
import openpi.transforms as _transforms

_ALOHA_REPACK = _transforms.Group(
    inputs=[
        _transforms.RepackTransform(
            {
                "images": {"cam_high": "observation.images.top"},
                "state": "observation.state",
                "actions": "action",
            }
        )
    ]
)


@dataclasses.dataclass(frozen=True)
class LeRobotAlohaDataConfig(DataConfigFactory):
    """A LeRobot dataset of a two-armed ALOHA robot, left arm first."""

    # Train the 12 joints on differences from the current state. Grippers stay absolute.
    use_delta_joint_actions: bool = True
    # Prompt of samples that carry none.
    default_prompt: str | None = None
    # Convert joints and grippers to the convention of the base models. Only for robots with ALOHA's kinematics.
    adapt_to_pi: bool = True
    # Map dataset keys to `images`, `state` and `actions`. Add `prompt` if prompts come from the dataset's tasks.
    repack_transforms: Annotated[_transforms.Group, tyro.conf.Suppress] = _ALOHA_REPACK
    # Dataset key of the actions.
    action_sequence_keys: Sequence[str] = ("action",)

    def create(self, assets_dirs: pathlib.Path | None, model_config: _model.BaseModelConfig) -> DataConfig:
        """Build repack, robot and model transforms."""
        # Deltas come after the robot's convention, nearer to the model.
        data_transforms = _transforms.Group(
            inputs=[aloha_policy.AlohaInputs(adapt_to_pi=self.adapt_to_pi)],
            outputs=[aloha_policy.AlohaOutputs(adapt_to_pi=self.adapt_to_pi)],
        )
        if self.use_delta_joint_actions:
            data_transforms = _with_deltas(data_transforms, _transforms.make_bool_mask(6, -1, 6, -1))
        return dataclasses.replace(
            self.create_base_config(assets_dirs, model_config),
            repack_transforms=self.repack_transforms,
            data_transforms=data_transforms,
            model_transforms=ModelTransformFactory(default_prompt=self.default_prompt)(model_config),
            action_sequence_keys=self.action_sequence_keys,
        )


@dataclasses.dataclass(frozen=True)
class LeRobotLiberoDataConfig(DataConfigFactory):
    """A LeRobot dataset of the LIBERO simulator."""

    # Subtract the state from the first six action numbers. The data are deltas already, but pi0 was trained with this.
    extra_delta_transform: bool = False

    def create(self, assets_dirs: pathlib.Path | None, model_config: _model.BaseModelConfig) -> DataConfig:
        """Build repack, simulator and model transforms."""
        # Training data gets the keys that the simulator's clients send.
        keys = {"image": "image", "wrist_image": "wrist_image", "state": "state"}
        repack = {f"observation/{new}": old for new, old in keys.items()} | {"actions": "actions", "prompt": "prompt"}
        data_transforms = _transforms.Group(
            inputs=[
                libero_policy.LiberoInputs(model_type=model_config.model_type),
                *_without_second_wrist(model_config),
            ],
            outputs=[libero_policy.LiberoOutputs()],
        )
        if self.extra_delta_transform:
            data_transforms = _with_deltas(data_transforms, _transforms.make_bool_mask(6, -1))
        return dataclasses.replace(
            self.create_base_config(assets_dirs, model_config),
            repack_transforms=_transforms.Group(inputs=[_transforms.RepackTransform(repack)]),
            data_transforms=data_transforms,
            model_transforms=ModelTransformFactory()(model_config),
        )


@dataclasses.dataclass(frozen=True)
class LeRobotDROIDDataConfig(DataConfigFactory):
    """A LeRobot dataset of a DROID robot."""

    def create(self, assets_dirs: pathlib.Path | None, model_config: _model.BaseModelConfig) -> DataConfig:
        """Build repack, robot and model transforms."""
        keys = ("exterior_image_1_left", "wrist_image_left", "joint_position", "gripper_position")
        repack = {f"observation/{key}": key for key in keys} | {"actions": "actions", "prompt": "prompt"}
        return dataclasses.replace(
            self.create_base_config(assets_dirs, model_config),
            repack_transforms=_transforms.Group(inputs=[_transforms.RepackTransform(repack)]),
            data_transforms=droid_transforms(model_config),
            model_transforms=ModelTransformFactory()(model_config),
        )


def droid_transforms(model_config: _model.BaseModelConfig) -> _transforms.Group:
    """Return the DROID robot's transforms for a model."""
    return _transforms.Group(
        inputs=[droid_policy.DroidInputs(model_type=model_config.model_type), *_without_second_wrist(model_config)],
        outputs=[droid_policy.DroidOutputs()],
    )


def _without_second_wrist(model_config: _model.BaseModelConfig) -> list[_transforms.DataTransformFn]:
    """Return what drops the wrist camera that a single arm lacks.

    It saves work. pi0-FAST was trained with a black image there and keeps it.
    """
    is_masked = model_config.model_type != _model.ModelType.PI0_FAST
    return [_transforms.DropImages(["right_wrist_0_rgb"])] if is_masked else []


def _with_deltas(group: _transforms.Group, mask: Sequence[bool]) -> _transforms.Group:
    return group.push(inputs=[_transforms.DeltaActions(mask)], outputs=[_transforms.AbsoluteActions(mask)])
