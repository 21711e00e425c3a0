"""Configure a training run: `TrainConfig`, and values that follow from it."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

from flax import nnx
import tyro

from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import stacking
from openpi.shared import errors
from openpi.shared import nnx_utils
from openpi.shared import ranges
from openpi.training import optimizer as _optimizer
from openpi.training import weight_loaders
from openpi.training.configs import data_config as _data_config

Filter = nnx.filterlib.Filter

_IMAGE_TOWER = nnx_utils.PathRegex(".*PaliGemma/img/.*")

Steps = Annotated[int, ranges.Range(1, 1_000_000_000, "at least one, and far more than any run has")]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    A registered config sets the values, and flags of the same name override them.
    """

    # Unique name, which is also the folder of assets and checkpoints.
    name: Annotated[str, tyro.conf.Suppress]
    # Project under which wandb lists the run.
    project_name: str = "openpi"
    # Name of this run, a folder below the config's checkpoints.
    exp_name: str = tyro.MISSING
    # The network. Some fields (action_dim, action_horizon, max_token_len) also shape the data.
    model: _model.BaseModelConfig = dataclasses.field(default_factory=pi0_config.Pi0Config)
    # Where to load the initial parameters from. The default keeps the random ones.
    weight_loader: weight_loaders.WeightLoader = dataclasses.field(default_factory=weight_loaders.NoOpWeightLoader)
    # Used by the original project's PyTorch trainer only.
    pytorch_weight_path: str | None = None
    # Used by the original project's PyTorch trainer only.
    pytorch_training_precision: Literal["bfloat16", "float32"] = "bfloat16"
    # Learning rate as a function of the step.
    lr_schedule: _optimizer.LRScheduleConfig = dataclasses.field(default_factory=_optimizer.CosineDecaySchedule)
    # How gradients become updates.
    optimizer: _optimizer.OptimizerConfig = dataclasses.field(default_factory=_optimizer.AdamW)
    # Decay per step of the averaged parameters that checkpoints hold. With None, they hold the raw parameters.
    ema_decay: Annotated[float, ranges.Range(0.0, 0.999999, "with 1 the average would never change")] | None = 0.99
    # Parameters that stay as loaded. They are kept in bfloat16, without optimizer state.
    freeze_filter: Annotated[Filter, tyro.conf.Suppress] = dataclasses.field(default_factory=nnx.Nothing)
    # The data to train on.
    data: _data_config.DataConfigFactory = dataclasses.field(default_factory=_data_config.FakeDataConfig)
    # Folder of normalization statistics, with one sub-folder per config.
    assets_base_dir: str = "./assets"
    # Folder of checkpoints, with one sub-folder per config.
    checkpoint_base_dir: str = "./checkpoints"
    # Seed of initial parameters, noise and sample order.
    seed: ranges.Seed = 42
    # Samples per step, over all devices.
    batch_size: Annotated[int, ranges.Range(1, 1_000_000, "one sample to more than any cluster holds")] = 32
    # Threads that read and decode samples.
    num_workers: Annotated[int, ranges.Range(0, 1024, "threads of one machine, and 0 reads in the loop itself")] = 2
    # Steps of the whole run, including those before a resume.
    num_train_steps: Steps = 30_000
    # Steps between two log lines.
    log_interval: Steps = 100
    # Steps between two checkpoints.
    save_interval: Steps = 1000
    # Keep the checkpoints of steps divisible by this number forever. With None, only the newest is kept.
    keep_period: Steps | None = 5000
    # Delete the run's folder if it exists.
    overwrite: bool = False
    # Continue from the run's newest checkpoint.
    resume: bool = False
    # Report to wandb too. The log in the run's folder is always written.
    wandb_enabled: bool = False
    # Metadata that a server of this config sends to every client.
    policy_metadata: Annotated[dict[str, Any] | None, tyro.conf.Suppress] = None
    # Devices that share one copy of the parameters. With 1, every device holds all of them.
    fsdp_devices: Annotated[int, ranges.Range(1, 65_536, "accelerators of a cluster")] = 1

    # Parts to split each batch into. They are computed one after the other: less memory for activations, the same losses.
    grad_accumulation: Annotated[int, ranges.Range(1, 1_000_000, "at most one part per sample")] = 1
    # Keep the image tower as loaded.
    freeze_image_tower: bool = False
    # What layers compute again in the backward pass: everything ("full", least memory), everything but the products with
    # weights ("dots"), or nothing ("none", least to compute).
    remat: stacking.Remat = "full"
    # Steps between two validations, if --data.validation keeps episodes out. The default is with every checkpoint.
    validation_interval: Steps | None = None
    # Samples of a validation. They are always the same ones.
    validation_samples: ranges.Count = 256
    # Stop when the mean loss of 20 steps is this many times the lowest one of the run. With None, never stop.
    max_loss_growth: (
        Annotated[float, ranges.Range(1.0, 1e6, "a loss that grew more is lost. None never stops")] | None
    ) = 100.0
    # Write TensorBoard files too, into the run's folder.
    tensorboard: bool = False
    # Address host:port of process 0 of a run on several hosts. The default is JAX_COORDINATOR_ADDRESS, or one process.
    coordinator_address: str | None = None
    # Number of processes. The default is JAX_NUM_PROCESSES.
    num_processes: Annotated[int, ranges.Range(1, 65_536, "hosts of a cluster")] | None = None
    # Index of this process, from 0. The default is JAX_PROCESS_ID.
    process_id: Annotated[int, ranges.Range(0, 65_535, "hosts of a cluster, counted from 0")] | None = None

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise errors.ConfigError(
                f"config '{self.name}': --resume and --overwrite exclude each other. Give one of them"
            )
        ranges.check(self, f"config '{self.name}'")
        if self.validation_interval is not None and self.data.validation.is_empty:
            raise errors.ConfigError(
                f"config '{self.name}': found validation_interval {self.validation_interval}, but no episodes are kept out. "
                "Add --data.validation.fraction 0.1"
            )

    @property
    def assets_dirs(self) -> pathlib.Path:
        """Absolute path of this config's assets."""
        return (pathlib.Path(self.assets_base_dir) / self.name).resolve()

    @property
    def checkpoint_dir(self) -> pathlib.Path:
        """Absolute path of this run's checkpoints.

        Raises:
            ConfigError: `exp_name` is not set.
        """
        if self.exp_name is tyro.MISSING or not self.exp_name:
            raise errors.ConfigError(f"config '{self.name}': exp_name is not set. Give the run a name with --exp-name")
        return (pathlib.Path(self.checkpoint_base_dir) / self.name / self.exp_name).resolve()

    @property
    def trainable_filter(self) -> Filter:
        """The parameters that the optimizer changes."""
        frozen = (self.freeze_filter, *([_IMAGE_TOWER] if self.freeze_image_tower else []))
        return nnx.All(nnx.Param, *(nnx.Not(each) for each in frozen))
