"""Check that statistics exist and belong to a training's data."""

from collections.abc import Sequence
import logging
from typing import Any

from openpi.shared import errors
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.train_config import TrainConfig
from openpi.training.samples import datasets
from openpi.training.stats import data_flags
from openpi.training.stats import provenance as stats_provenance

logger = logging.getLogger(__name__)


def check_present(config: TrainConfig, data_config: DataConfig) -> None:
    """Check that the statistics have been computed. No dataset is opened.

    Raises:
        MissingFileError: They are missing. The message names the command that computes them.
    """
    if data_config.norm_stats is None:
        raise errors.MissingFileError(
            f"{_folder(config, data_config)}/norm_stats.json: the normalization statistics of config '{config.name}' are "
            f"missing. Compute them with '{data_flags.norm_stats_command(config)}'"
        )


def check_data(config: TrainConfig, data_config: DataConfig, sources: Sequence[datasets.MixedSource]) -> None:
    """Check that the statistics belong to the opened datasets and transforms.

    Statistics that the config takes from elsewhere need only fit the transforms. Statistics without a provenance are
    accepted with a warning.

    Raises:
        DataError: They belong to other data or transforms. The message names the command that computes the right ones.
    """
    folder = _folder(config, data_config)
    provenance = data_config.norm_stats_provenance
    if provenance is None:
        logger.warning(
            "%s: the data of these norm stats is unknown (the original openpi writes no provenance). "
            "'%s' computes them from this dataset",
            folder,
            data_flags.norm_stats_command(config),
        )
        return
    # Describe what this training reads, and compare.
    basis = stats_provenance.describe(
        data_config,
        config.model.action_horizon,
        [_facts(source, data_config) for source in sources],
        sources[0].dataset.meta,
    )
    problems = stats_provenance.transform_differences(provenance, basis)
    other_data = stats_provenance.data_differences(provenance, basis)
    if config.data.assets.assets_dir is None:
        problems += other_data
    elif other_data:
        logger.warning("%s: norm stats of other data, as the config asks for: %s", folder, "; ".join(other_data))
    if problems:
        raise errors.DataError(
            f"{folder}/norm_stats.json: does not belong to this training: {'; '.join(problems)}. "
            f"Compute the statistics again with '{data_flags.norm_stats_command(config)}'"
        )


def _folder(config: TrainConfig, data_config: DataConfig) -> str:
    return f"{config.data.assets.assets_dir or config.assets_dirs}/{data_config.asset_id}"


def _facts(source: datasets.MixedSource, data_config: DataConfig) -> dict[str, Any]:
    metadata = source.dataset.meta
    keys = stats_provenance.stats_keys(metadata, datasets.used_keys(data_config, metadata, source.member))
    return stats_provenance.dataset_facts(source.member.repo_id, source.share, metadata, source.dataset.columns, keys)
