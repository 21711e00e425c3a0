"""The published configs of ALOHA, LIBERO and DROID.

They are for inference with released checkpoints and for fine-tuning.
"""

from typing import Any

from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import pi0_fast
from openpi.training import weight_loaders
from openpi.training.configs.data_config import AssetsConfig
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.data_config import SimpleDataConfig
from openpi.training.configs.robot_data_config import LeRobotAlohaDataConfig
from openpi.training.configs.robot_data_config import LeRobotDROIDDataConfig
from openpi.training.configs.robot_data_config import LeRobotLiberoDataConfig
from openpi.training.configs.robot_data_config import droid_transforms
from openpi.training.configs.train_config import TrainConfig
from openpi.training.optimizer import AdamW
from openpi.training.optimizer import CosineDecaySchedule
import openpi.transforms as _transforms

_CHECKPOINTS = "gs://openpi-assets/checkpoints"
# Joints of one arm in the pose that an ALOHA robot begins an episode in, rad. Both arms take it.
_ALOHA_METADATA = {"reset_pose": [0, -1.5, 1.5, 0, 0, 0]}
_PI0_LORA = pi0_config.Pi0Config(paligemma_variant="gemma_2b_lora", action_expert_variant="gemma_300m_lora")
_FAST_LIBERO = {"action_dim": 7, "action_horizon": 10, "max_token_len": 180}
_FAST_LORA = pi0_fast.Pi0FASTConfig(paligemma_variant="gemma_2b_lora", **_FAST_LIBERO)


def get_configs() -> list[TrainConfig]:
    """Build the configs of all three robots."""
    return [*_aloha_configs(), *_libero_configs(), *_droid_configs()]


def _weights(checkpoint: str) -> weight_loaders.CheckpointWeightLoader:
    return weight_loaders.CheckpointWeightLoader(f"{_CHECKPOINTS}/{checkpoint}/params")


def _aloha_configs() -> list[TrainConfig]:
    def inference(name: str, model: _model.BaseModelConfig, prompt: str | None = None) -> TrainConfig:
        data = LeRobotAlohaDataConfig(assets=AssetsConfig(asset_id="trossen"), default_prompt=prompt)
        return TrainConfig(name=name, model=model, data=data, policy_metadata=_ALOHA_METADATA)

    def pen_uncap(name: str, model: _model.BaseModelConfig, base: str, batch_size: int) -> TrainConfig:
        cameras = ("cam_high", "cam_left_wrist", "cam_right_wrist")
        repack = {
            "images": {camera: f"observation.images.{camera}" for camera in cameras},
            "state": "observation.state",
            "actions": "action",
        }
        data = LeRobotAlohaDataConfig(
            repo_id="physical-intelligence/aloha_pen_uncap_diverse",
            assets=AssetsConfig(assets_dir=f"{_CHECKPOINTS}/{base}/assets", asset_id="trossen"),
            default_prompt="uncap the pen",
            repack_transforms=_transforms.Group(inputs=[_transforms.RepackTransform(repack)]),
        )
        loader = _weights(base)
        return TrainConfig(
            name=name, model=model, data=data, weight_loader=loader, num_train_steps=20_000, batch_size=batch_size
        )

    # Inference first, then fine-tuning.
    pi0, pi05 = pi0_config.Pi0Config(), pi0_config.Pi0Config(pi05=True)
    return [
        inference("pi0_aloha", pi0),
        inference("pi05_aloha", pi05),
        inference("pi0_aloha_towel", pi0, "fold the towel"),
        inference("pi0_aloha_tupperware", pi0, "open the tupperware and put the food on the plate"),
        pen_uncap("pi0_aloha_pen_uncap", pi0, "pi0_base", batch_size=32),
        pen_uncap("pi05_aloha_pen_uncap", pi05, "pi05_base", batch_size=64),
        _aloha_sim_config(),
    ]


def _aloha_sim_config() -> TrainConfig:
    data = LeRobotAlohaDataConfig(
        repo_id="lerobot/aloha_sim_transfer_cube_human", default_prompt="Transfer cube", use_delta_joint_actions=False
    )
    return TrainConfig(
        name="pi0_aloha_sim",
        model=pi0_config.Pi0Config(),
        data=data,
        weight_loader=_weights("pi0_base"),
        num_train_steps=20_000,
    )


def _libero_configs() -> list[TrainConfig]:
    def config(name: str, model: _model.BaseModelConfig, base: str, **overrides: Any) -> TrainConfig:
        data = LeRobotLiberoDataConfig(
            repo_id="physical-intelligence/libero",
            base_config=DataConfig(prompt_from_task=True),
            extra_delta_transform=model.model_type != _model.ModelType.PI05,
        )
        return TrainConfig(name=name, model=model, data=data, weight_loader=_weights(base), **overrides)

    # pi0 and pi0-FAST, first whole, then with low-rank adapters. pi0.5 comes last.
    fast = pi0_fast.Pi0FASTConfig(**_FAST_LIBERO)
    return [
        config("pi0_libero", pi0_config.Pi0Config(), "pi0_base"),
        config("pi0_fast_libero", fast, "pi0_fast_base"),
        config(
            "pi0_libero_low_mem_finetune",
            _PI0_LORA,
            "pi0_base",
            freeze_filter=_PI0_LORA.get_freeze_filter(),
            ema_decay=None,
        ),
        config(
            "pi0_fast_libero_low_mem_finetune",
            _FAST_LORA,
            "pi0_fast_base",
            freeze_filter=_FAST_LORA.get_freeze_filter(),
            ema_decay=None,
        ),
        config(
            "pi05_libero",
            pi0_config.Pi0Config(pi05=True, action_horizon=10, discrete_state_input=False),
            "pi05_base",
            batch_size=256,
            lr_schedule=CosineDecaySchedule(warmup_steps=10_000, peak_lr=5e-5, decay_steps=1_000_000, decay_lr=5e-5),
            optimizer=AdamW(clip_gradient_norm=1.0),
            ema_decay=0.999,
        ),
    ]


def _droid_configs() -> list[TrainConfig]:
    assets = AssetsConfig(asset_id="droid")

    def inference(name: str, model: _model.BaseModelConfig) -> TrainConfig:
        base = DataConfig(prompt_from_task=True)
        data = SimpleDataConfig(assets=assets, data_transforms=droid_transforms, base_config=base)
        return TrainConfig(name=name, model=model, data=data)

    # A template: fine-tuning starts from the released DROID checkpoint and uses its statistics.
    finetune = LeRobotDROIDDataConfig(
        repo_id="your_hf_username/my_droid_dataset",
        base_config=DataConfig(prompt_from_task=True),
        assets=AssetsConfig(assets_dir=f"{_CHECKPOINTS}/pi05_droid/assets", asset_id="droid"),
    )
    return [
        inference("pi0_droid", pi0_config.Pi0Config(action_horizon=10)),
        inference("pi0_fast_droid", pi0_fast.Pi0FASTConfig(action_dim=8, action_horizon=10)),
        inference("pi05_droid", pi0_config.Pi0Config(pi05=True, action_horizon=15)),
        TrainConfig(
            name="pi05_droid_finetune",
            model=pi0_config.Pi0Config(pi05=True, action_horizon=16),
            data=finetune,
            weight_loader=_weights("pi05_droid"),
            num_train_steps=20_000,
        ),
    ]
