"""What a training run reads: dataset, normalisation statistics and the transforms between a stored frame and the model.

A `DataConfigFactory` is the part a user sets (and the command line shows); `create` turns it into a `DataConfig`.
"""

import abc
from collections.abc import Callable, Sequence
import dataclasses
import logging
import pathlib
from typing import Annotated, Any, TypeAlias

import tyro

from openpi.models import gemma as _gemma
from openpi.models import model as _model
from openpi.models import tokenizer as _tokenizer
from openpi.shared import download as _download
from openpi.shared import errors
from openpi.shared import normalize as _normalize
from openpi.training.configs.mixture import MixedDataset
from openpi.training.configs.mixture import MixedDatasetFlag
from openpi.training.configs.validation_split import ValidationSplit
import openpi.transforms as _transforms

logger = logging.getLogger(__name__)

# Stands for random samples instead of a dataset.
FAKE_REPO_ID = "fake"

GroupFactory: TypeAlias = Callable[[_model.BaseModelConfig], _transforms.Group]


@dataclasses.dataclass(frozen=True)
class AssetsConfig:
    """Where the assets of the data (normalisation statistics) are read, when not from the config's own assets folder.

    Fine-tuning with the statistics of a released checkpoint:
    `AssetsConfig(assets_dir="gs://openpi-assets/checkpoints/pi0_base/assets", asset_id="trossen")`.
    """

    # Folder or URL that holds <asset_id>/norm_stats.json; None: <assets_base_dir>/<config name>.
    assets_dir: str | None = None
    # Sub-folder of the assets; None: the dataset's repo_id.
    asset_id: str | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Everything the data loader needs to know; built by a `DataConfigFactory`."""

    # LeRobot dataset id; None: no dataset ("fake": random samples of the model's shapes).
    repo_id: str | None = None
    # Folder of the statistics inside the assets folder.
    asset_id: str | None = None
    # Statistics of `state` and `actions` after the data transforms; None when they have not been computed.
    norm_stats: dict[str, _normalize.NormStats] | None = None
    # What the statistics were computed from; None when that is not known.
    norm_stats_provenance: _normalize.Provenance | None = None
    # Dataset keys to the keys that the data transforms expect. Training only.
    repack_transforms: _transforms.Group = dataclasses.field(default_factory=_transforms.Group)
    # Robot-specific: camera slots, joint order, delta actions. Training and inference, before normalisation.
    data_transforms: _transforms.Group = dataclasses.field(default_factory=_transforms.Group)
    # Model-specific: resize, tokenise, pad. Training and inference, after normalisation.
    model_transforms: _transforms.Group = dataclasses.field(default_factory=_transforms.Group)
    # Scale with the 1 % and 99 % quantiles instead of mean and standard deviation.
    use_quantile_norm: bool = False
    # Dataset keys that are read as windows of action_horizon frames.
    action_sequence_keys: Sequence[str] = ("actions",)
    # Take the prompt from the dataset's task text.
    prompt_from_task: bool = False
    # Datasets that are mixed, instead of the one named repo_id.
    mixture: Sequence[MixedDataset] = ()
    # Episodes kept out of training.
    validation: ValidationSplit = dataclasses.field(default_factory=ValidationSplit)
    # Decode JPEGs at a part of their size.
    reduced_jpeg: bool = False
    # Keep pictures on the disk in the model's size.
    keep_images: bool = True
    # RLDS data is not supported by this loader; the three fields keep such configs representable.
    rlds_data_dir: str | None = None
    action_space: Any | None = None
    datasets: Sequence[Any] = ()

    def members(self) -> Sequence[MixedDataset]:
        """Return the datasets to read: those of the mixture, or the one named `repo_id`."""
        return self.mixture or (() if self.repo_id is None else (MixedDataset(self.repo_id),))


@dataclasses.dataclass(frozen=True)
class DataConfigFactory(abc.ABC):
    """Base of every data configuration: subclass it as a frozen dataclass and start `create` from `create_base_config`."""

    # LeRobot dataset id, a folder below $HF_LEROBOT_HOME (or ./data/lerobot); of a mixture: the name of its statistics.
    repo_id: str = tyro.MISSING
    # Where the statistics are read.
    assets: AssetsConfig = dataclasses.field(default_factory=AssetsConfig)
    # Datasets to train on together, each REPO_ID[:WEIGHT[:PROMPT]]; the weights are shares of the samples.
    mixture: tuple[MixedDatasetFlag, ...] = ()
    # Episodes kept out of training, to watch the loss on them.
    validation: ValidationSplit = dataclasses.field(default_factory=ValidationSplit)
    # Decode JPEGs at half their size where that still fills the model's images: faster, differs by 0.4 grey levels (mean).
    reduced_jpeg: bool = False
    # Keep pictures on the disk beside the dataset in the model's size (no pixel differs): each is decoded once.
    keep_images: bool = True
    # Values that the factory does not set itself.
    base_config: Annotated[DataConfig | None, tyro.conf.Suppress] = None

    @abc.abstractmethod
    def create(self, assets_dirs: pathlib.Path | None, model_config: _model.BaseModelConfig) -> DataConfig:
        """Build the data config of `model_config`.

        Args:
            assets_dirs: Assets folder of the training config. None: the statistics come from elsewhere (a checkpoint),
                nothing is looked up, on disk or on the network.
            model_config: Decides token length, padding and the kind of normalisation.
        """

    def create_base_config(self, assets_dirs: pathlib.Path | None, model_config: _model.BaseModelConfig) -> DataConfig:
        """Fill in the dataset, the statistics (None, with a log line, if absent) and the kind of normalisation."""
        repo_id = None if self.repo_id is tyro.MISSING else self.repo_id
        asset_id = self.assets.asset_id or repo_id
        stats, provenance = (None, None) if assets_dirs is None else self._load_norm_stats(assets_dirs, asset_id)
        return dataclasses.replace(
            self.base_config or DataConfig(),
            repo_id=repo_id,
            asset_id=asset_id,
            norm_stats=stats,
            norm_stats_provenance=provenance,
            mixture=self.mixture,
            validation=self.validation,
            reduced_jpeg=self.reduced_jpeg,
            keep_images=self.keep_images,
            # pi0 was pretrained on z-scores, the later models on quantiles.
            use_quantile_norm=model_config.model_type != _model.ModelType.PI0,
        )

    def _load_norm_stats(
        self, assets_dirs: pathlib.Path, asset_id: str | None
    ) -> tuple[dict[str, _normalize.NormStats] | None, _normalize.Provenance | None]:
        if asset_id is None:
            return None, None
        directory = f"{self.assets.assets_dir or assets_dirs}/{asset_id}"
        try:
            folder = _download.maybe_download(directory)
            return _normalize.load(folder), _normalize.load_provenance(folder)
        except FileNotFoundError:
            logger.info("no norm_stats.json in %s yet", directory)
        except errors.DataError:
            raise  # they are there, but damaged
        except errors.UserError as e:
            logger.warning("norm stats of %s could not be fetched: %s", directory, e)
        return None, None


@dataclasses.dataclass(frozen=True)
class ModelTransformFactory:
    """Transforms that a model family needs whatever the robot: default prompt, image size, tokens, padding."""

    # Prompt of samples that carry none.
    default_prompt: str | None = None

    def __call__(self, model_config: _model.BaseModelConfig) -> _transforms.Group:
        """Build the group for `model_config`."""
        vocab_size = _gemma.get_config(model_config.paligemma_variant).vocab_size
        prepare = [
            _transforms.InjectDefaultPrompt(self.default_prompt),
            _transforms.ResizeImages(*_model.IMAGE_RESOLUTION),
        ]
        if model_config.model_type == _model.ModelType.PI0_FAST:
            tokenizer = _fast_tokenizer(model_config, vocab_size)
            extract = _transforms.ExtractFASTActions(
                tokenizer, action_horizon=model_config.action_horizon, action_dim=model_config.action_dim
            )
            # Actions are tokens here: nothing is padded.
            return _transforms.Group(inputs=[*prepare, _transforms.TokenizeFASTInputs(tokenizer)], outputs=[extract])
        is_pi05 = model_config.model_type == _model.ModelType.PI05
        tokenize = _transforms.TokenizePrompt(
            _tokenizer.for_vocab(vocab_size, model_config.max_token_len),
            # The original's pi0 takes its state as a token of its own, whatever this field says.
            discrete_state_input=is_pi05 and model_config.discrete_state_input,
        )
        return _transforms.Group(inputs=[*prepare, tokenize, _transforms.PadStatesAndActions(model_config.action_dim)])


def _fast_tokenizer(model_config: _model.BaseModelConfig, vocab_size: int) -> _transforms.ActionTokenizer:
    kwargs = model_config.fast_model_tokenizer_kwargs or {}
    if model_config.fast_model_tokenizer is not None:
        return model_config.fast_model_tokenizer(model_config.max_token_len, **kwargs)
    return _tokenizer.fast_for_vocab(vocab_size, model_config.max_token_len, **kwargs)


def _no_transforms(model_config: _model.BaseModelConfig) -> _transforms.Group:
    del model_config
    return _transforms.Group()


@dataclasses.dataclass(frozen=True)
class FakeDataConfig(DataConfigFactory):
    """Random samples of the model's input shapes: tries out a model without any dataset."""

    # Has no effect: there is nothing to choose from.
    repo_id: str = FAKE_REPO_ID

    def create(self, assets_dirs: pathlib.Path | None, model_config: _model.BaseModelConfig) -> DataConfig:
        """Name the fake dataset; nothing is looked up."""
        del assets_dirs, model_config
        return DataConfig(repo_id=FAKE_REPO_ID)


@dataclasses.dataclass(frozen=True)
class SimpleDataConfig(DataConfigFactory):
    """A data config whose transforms are given as two functions of the model config; the rest comes from `base_config`."""

    # Robot-specific transforms.
    data_transforms: Annotated[GroupFactory, tyro.conf.Suppress] = _no_transforms
    # Model-specific transforms.
    model_transforms: Annotated[GroupFactory, tyro.conf.Suppress] = dataclasses.field(
        default_factory=ModelTransformFactory
    )

    def create(self, assets_dirs: pathlib.Path | None, model_config: _model.BaseModelConfig) -> DataConfig:
        """Apply both functions to the model config."""
        return dataclasses.replace(
            self.create_base_config(assets_dirs, model_config),
            data_transforms=self.data_transforms(model_config),
            model_transforms=self.model_transforms(model_config),
        )
