"""Deliver batches for training, in an order that can be resumed.

Threads read and decode the samples, a few batches ahead.
"""

import collections
from collections.abc import Iterator, Sequence
import concurrent.futures
import dataclasses
import logging
from typing import Any, Literal, NotRequired, TypedDict

import jax
import numpy as np

from openpi.models import model as _model
from openpi.shared import errors
from openpi.training.configs.data_config import FAKE_REPO_ID
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.train_config import TrainConfig
from openpi.training.host import free_space
from openpi.training.samples import datasets
from openpi.training.samples import early_fit
from openpi.training.stats import check as stats_check

logger = logging.getLogger(__name__)

# Batches that are read while the model trains on one.
_PREFETCH_BATCHES = 3
# Seed of the order of validation samples. It is the same in every run, so that runs can be compared.
_VALIDATION_SEED = 0

Batch = tuple[_model.Observation, _model.Actions]


class LoaderState(TypedDict):
    """Position of a loader, as plain values to store with a checkpoint."""

    # Samples delivered since the start of training, over all processes.
    position: int
    # Seed of their order.
    seed: int
    # Number of samples of the dataset, which the order depends on. Absent in older checkpoints.
    num_samples: NotRequired[int]


class DataLoader:
    """Batches (observation, actions) of device arrays.

    The order depends on the seed alone, not on the number of threads. Each process of a multi-process run reads only
    its own rows of every batch.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        data_config: DataConfig,
        *,
        batch_size: int,
        sharding: jax.sharding.Sharding | None = None,
        shuffle: bool = False,
        num_batches: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        rewind: bool = False,
    ) -> None:
        """Set up a loader at the start of its order.

        Args:
            dataset: Samples with transforms applied.
            data_config: The config they were made from.
            batch_size: Samples per batch, over all processes.
            sharding: Placement of the batches. The default splits dimension 0 over all devices.
            shuffle: Permute the samples, differently in each epoch.
            num_batches: Batches per iteration. None means endless.
            num_workers: Number of reading threads. With 0, the caller's thread reads each batch when it asks for it.
            seed: Seed of the permutations.
            rewind: Begin every iteration at the start of the order, instead of where the last one ended.

        Raises:
            ConfigError: The batch cannot be split evenly over processes.
        """
        if batch_size % jax.process_count():
            raise errors.ConfigError(
                f"batch_size: {batch_size} cannot be split over {jax.process_count()} processes. Choose a multiple"
            )
        self._dataset = dataset
        self._data_config = data_config
        self._batch_size = batch_size
        self._sharding = sharding or _over_all_devices()
        self._num_batches = num_batches
        self._num_workers = num_workers
        self._rewind = rewind
        self._order = datasets.sample_order(dataset, seed, shuffle=shuffle)
        self._position = 0

    def data_config(self) -> DataConfig:
        """Return the config that the samples were made from."""
        return self._data_config

    @property
    def num_batches(self) -> int | None:
        """Batches per iteration. None means endless."""
        return self._num_batches

    @property
    def num_samples(self) -> int:
        """Number of samples of the dataset, which is one epoch."""
        return self._order.num_samples

    def spec(self) -> Batch:
        """Return shapes and types of a batch as ShapeDtypeStructs.

        One sample is read.

        Raises:
            DataError: The sample cannot be read.
        """

        def batched(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self._batch_size, *leaf.shape[1:]), leaf.dtype)

        batch = jax.tree.map(batched, _collate([self._dataset[0]]))
        return jax.eval_shape(lambda batch: (_model.Observation.from_dict(batch), batch["actions"]), batch)

    def state(self) -> LoaderState:
        """Return the position after the last batch that was delivered."""
        return LoaderState(position=self._position, seed=self._order.seed, num_samples=self.num_samples)

    def restore(self, state: LoaderState) -> None:
        """Continue from `state`, in iterations that begin afterwards."""
        if state["seed"] != self._order.seed:
            logger.warning(
                "data loader: the run began with seed %d and continues with seed %d. Samples may come twice",
                state["seed"],
                self._order.seed,
            )
        if state.get("num_samples", self.num_samples) != self.num_samples:
            logger.warning(
                "data loader: the run began with %d samples and continues with %d (other data, mixture or validation "
                "episodes). Samples may come twice",
                state["num_samples"],
                self.num_samples,
            )
        self._position = state["position"]

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from the current position on.

        Raises:
            DataError: A sample cannot be read.
        """
        if self._rewind:
            self._position = 0
        for collated in self._read_batches():
            batch = jax.tree.map(self._to_device, collated)
            self._position += self._batch_size
            yield _model.Observation.from_dict(batch), batch["actions"]

    def _indices(self, position: int) -> list[int]:
        """Return the indices of this process's rows of the batch at `position`."""
        local = self._batch_size // jax.process_count()
        return self._order.take(position + jax.process_index() * local, local).tolist()

    def _read_batches(self) -> Iterator[dict[str, Any]]:
        end = None if self._num_batches is None else self._position + self._num_batches * self._batch_size
        next_position = self._position
        # Without threads.
        if self._num_workers == 0:
            while end is None or next_position < end:
                yield _collate([self._dataset[index] for index in self._indices(next_position)])
                next_position += self._batch_size
            return

        readers = concurrent.futures.ThreadPoolExecutor(self._num_workers, thread_name_prefix="loader")
        # The collator has a thread of its own, because it waits for readers and must not take a reader's thread.
        collator = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="loader-collate")
        pending: collections.deque[concurrent.futures.Future[dict[str, Any]]] = collections.deque()
        try:
            while True:
                while len(pending) < _PREFETCH_BATCHES and (end is None or next_position < end):
                    samples = [
                        readers.submit(self._dataset.__getitem__, index) for index in self._indices(next_position)
                    ]
                    pending.append(collator.submit(_collate_when_read, samples))
                    next_position += self._batch_size
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            collator.shutdown(wait=False, cancel_futures=True)

    def _to_device(self, x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(self._sharding, x)


def _over_all_devices() -> jax.sharding.Sharding:
    mesh = jax.sharding.Mesh(jax.devices(), ("B",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("B"))


def _collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    # The device would turn float64 (from the statistics) into float32 anyway. Doing it here halves the copy.
    def stack(*leaves: Any) -> np.ndarray:
        stacked = np.stack([np.asarray(leaf) for leaf in leaves])
        return stacked.astype(np.float32) if stacked.dtype == np.float64 else stacked

    return jax.tree.map(stack, *samples)


def _collate_when_read(samples: Sequence[concurrent.futures.Future[dict[str, Any]]]) -> dict[str, Any]:
    return _collate([sample.result() for sample in samples])


def create_data_loader(
    config: TrainConfig,
    *,
    sharding: jax.sharding.Sharding | None = None,
    shuffle: bool = False,
    num_batches: int | None = None,
    skip_norm_stats: bool = False,
    framework: Literal["jax"] = "jax",
    leave_room: free_space.Claim | None = None,
) -> DataLoader:
    """Build the loader of a training config.

    Args:
        config: Sets dataset, batch size, threads and seed.
        sharding: Placement of the batches. The default splits dimension 0 over all devices.
        shuffle: Permute the samples, differently in each epoch.
        num_batches: Batches per iteration. None means endless.
        skip_norm_stats: Do not normalize the samples.
        framework: Kind of arrays. Only "jax" is supported.
        leave_room: Space that kept images must leave free on their disk.

    Raises:
        MissingFileError: Dataset or statistics are missing. The message names the command that makes them.
        DataError: The dataset cannot be read, lacks what the config asks for, or is not that of the statistics.
        ConfigError: The config contradicts itself.
    """
    if framework != "jax":
        raise errors.ConfigError(f"data loader: found framework '{framework}', expected 'jax'")
    dataset, data_config = _open(config, "train", skip_norm_stats=skip_norm_stats, leave_room=leave_room)
    return DataLoader(
        dataset,
        data_config,
        batch_size=config.batch_size,
        sharding=sharding,
        shuffle=shuffle,
        num_batches=num_batches,
        num_workers=config.num_workers,
        seed=config.seed,
    )


def create_validation_loader(
    config: TrainConfig, *, sharding: jax.sharding.Sharding | None = None, num_batches: int | None = None
) -> DataLoader | None:
    """Build the loader of the episodes kept out of training.

    `config.data.validation` chooses them. Every iteration gives the same batches in the same order, also in another
    run, with another seed of training or after a resume. The frames are shuffled, so that a few batches show all
    episodes. Batches have `config.batch_size` samples. The last batch of a pass is filled up from the start of the next.

    Args:
        config: Sets dataset, split, batch size and threads.
        sharding: Placement of the batches. The default splits dimension 0 over all devices.
        num_batches: Batches per iteration, at most one pass over the frames kept out. None means one pass.

    Returns:
        The loader, or None if nothing is kept out.

    Raises:
        UserError: As `create_data_loader`.
    """
    if config.data.repo_id == FAKE_REPO_ID or config.data.validation.is_empty:
        return None
    dataset, data_config = _open(config, "validation")
    whole_pass = -(-len(dataset) // config.batch_size)
    return DataLoader(
        dataset,
        data_config,
        batch_size=config.batch_size,
        sharding=sharding,
        shuffle=True,
        num_batches=whole_pass if num_batches is None else min(num_batches, whole_pass),
        num_workers=config.num_workers,
        seed=_VALIDATION_SEED,
        rewind=True,
    )


def _open(
    config: TrainConfig,
    part: datasets.Part,
    *,
    skip_norm_stats: bool = False,
    leave_room: free_space.Claim | None = None,
) -> tuple[datasets.Dataset, DataConfig]:
    data_config = config.data.create(config.assets_dirs, config.model)
    if data_config.repo_id == FAKE_REPO_ID:
        return datasets.create_dataset(data_config, config.model.action_horizon, config.model), data_config
    if not skip_norm_stats:
        stats_check.check_present(config, data_config)
    sources = datasets.open_sources(data_config, config.model.action_horizon)
    if not skip_norm_stats and part == "train":
        stats_check.check_data(config, data_config, sources)
    sources = [
        dataclasses.replace(source, dataset=early_fit.fit_early(source.dataset, data_config, leave_room=leave_room))
        for source in sources
    ]
    data_config = dataclasses.replace(data_config, fps=sources[0].dataset.meta.fps)
    dataset = datasets.join(sources, data_config, part)
    return datasets.transform_dataset(dataset, data_config, skip_norm_stats=skip_norm_stats), data_config
