"""The common parts of all models: observations, configuration and interface.

Letters in the shape remarks of this package, such as `# [b, s, d]`:

    b batch, h w c image, s tokens, p tokens of the prefix, l prompt length, d width, ah action horizon, ad action dim,
    v vocabulary, n number of items that the line names (heads, steps, tokens to write)

An observation as a dict, as transforms and data loaders provide it:

    {
        "image": {"base_0_rgb": (b, h, w, 3) float32 in [-1, 1] or uint8 in 0..255, ...},
        "image_mask": {"base_0_rgb": (b,) bool, ...},               # optional, False: this camera is missing
        "state": (b, s) float,
        "tokenized_prompt": (b, l) int,                             # optional, together with its mask
        "tokenized_prompt_mask": (b, l) bool,                       # False: padding
        "token_ar_mask": (b, l) int,                                # pi0-FAST: 1 = may be seen by later tokens only
        "token_loss_mask": (b, l) bool,                             # pi0-FAST: True = trained on
        "actions": (b, ah, ad) float,                               # training only, not part of the observation
    }
"""

import abc
from collections.abc import Mapping, Sequence
import dataclasses
import enum
import logging
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from flax import nnx
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from openpi.models import augmentation
from openpi.models import batch_shapes
from openpi.models.checkpoint_params import restore_params as restore_params
from openpi.models.pytrees import pytree_dataclass
from openpi.shared import array_typing as at
from openpi.shared import errors
from openpi.shared import image_tools
from openpi.shared import nnx_utils
from openpi.shared import ranges

logger = logging.getLogger(__name__)

ArrayT = TypeVar("ArrayT", bound=jax.Array | np.ndarray | jax.ShapeDtypeStruct)


class ModelType(enum.Enum):
    """The families of models."""

    PI0 = "pi0"
    PI0_FAST = "pi0_fast"
    PI05 = "pi05"


# Camera slots of pi0 and pi0.5, in the order of their tokens.
IMAGE_KEYS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")

# Height and width that the image tower was trained on, px.
IMAGE_RESOLUTION = (224, 224)


@pytree_dataclass
class Observation(Generic[ArrayT]):
    """The inputs of a model: an immutable pytree.

    Leaves are arrays or, in a specification, ShapeDtypeStructs.
    """

    # RGB in [-1, 1], by camera slot.
    images: dict[str, at.Float[ArrayT, "*b h w c"]]
    # False where a camera is missing. A slot that no sample fills may have only a mask. Then it gets no tokens.
    image_masks: dict[str, at.Bool[ArrayT, "*b"]]
    # Normalized robot state.
    state: at.Float[ArrayT, "*b s"]
    # Prompt token ids, and which of them are not padding.
    tokenized_prompt: at.Int[ArrayT, "*b l"] | None = None
    tokenized_prompt_mask: at.Bool[ArrayT, "*b l"] | None = None
    # pi0-FAST: 1 where only the token itself and later ones may see it, 0 inside the bidirectional prefix.
    token_ar_mask: at.Int[ArrayT, "*b l"] | None = None
    # pi0-FAST: True where a token counts in the loss.
    token_loss_mask: at.Bool[ArrayT, "*b l"] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Observation[ArrayT]":
        """Make an observation from its dict form (see the module's docstring).

        `data` stays unchanged. uint8 images become float32 in [-1, 1]. Cameras without a mask count as present.

        Raises:
            DataError: A required key is missing, or the prompt has no mask, or the mask no prompt.
        """
        missing = [key for key in ("image", "state") if key not in data]
        if missing:
            raise errors.DataError(f"observation: found {sorted(data)}, expected also {missing}")
        if ("tokenized_prompt" in data) != ("tokenized_prompt_mask" in data):
            raise errors.DataError("observation: 'tokenized_prompt' and 'tokenized_prompt_mask' must come together")
        # The model computes with floats and with a mask for every camera.
        images = {key: _to_float(image) for key, image in data["image"].items()}
        masks = data.get("image_mask", {})
        return cls(
            images=images,
            image_masks={key: _all_true(image) for key, image in images.items() if key not in masks} | dict(masks),
            state=data["state"],
            tokenized_prompt=data.get("tokenized_prompt"),
            tokenized_prompt_mask=data.get("tokenized_prompt_mask"),
            token_ar_mask=data.get("token_ar_mask"),
            token_loss_mask=data.get("token_loss_mask"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the dict form. Absent fields are None."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"image": fields.pop("images"), "image_mask": fields.pop("image_masks"), **fields}


Actions = at.Float[ArrayT, "*b ah ad"]
"""A chunk of actions: ah time steps of ad numbers."""


def _to_float(image: Any) -> Any:
    """Map uint8 0..255 to float32 -1..1. Other images stay unchanged."""
    if image.dtype != np.uint8:
        return image
    scale = _scale if isinstance(image, np.ndarray) else _scale_on_device
    return scale(image, np.float32(255))


def _scale(levels: Any, white: np.float32) -> Any:
    return levels.astype(np.float32) / white * 2.0 - 1.0


# One pass over the pixels. The divisor is an argument, because XLA multiplies with the rounded inverse of a constant.
_scale_on_device = jax.jit(_scale)


def _all_true(image: Any) -> Any:
    xp = np if isinstance(image, np.ndarray) else jnp
    return xp.ones(image.shape[:-3], dtype=bool)


def preprocess_observation(
    rng: at.KeyArrayLike | None,
    observation: Observation,
    *,
    train: bool = False,
    image_keys: Sequence[str] = IMAGE_KEYS,
    image_resolution: tuple[int, int] = IMAGE_RESOLUTION,
) -> Observation:
    """Select the camera slots, resize and, in training, augment the images.

    Images are resized with padding. Absent masks become True.

    Args:
        rng: Random key for augmentation. May be None unless `train`.
        observation: Batched observation.
        train: Augment the images.
        image_keys: Slots to keep, in the wanted order.
        image_resolution: Height and width that the model expects, px.

    Raises:
        DataError: An image slot has neither image nor mask, or parts of the observation do not fit each other in shape
            or kind. For example, images are 8-bit. `Observation.from_dict` converts those.
    """
    missing = [key for key in image_keys if key not in observation.images and key not in observation.image_masks]
    if missing:
        raise errors.DataError(f"observation: found images {list(observation.images)}, expected also {missing}")
    batch_shapes.check_observation(observation, image_keys)
    images, masks = {}, {}
    for key in image_keys:
        if key not in observation.images:
            continue
        image = observation.images[key]  # [b, h, w, 3]
        if image.shape[-3:-1] != tuple(image_resolution):
            image = image_tools.resize_with_pad(image, *image_resolution)
        if train:
            # Every camera uses the same key, which gives one crop, angle and color change per sample.
            image = augmentation.augment(rng, image / 2.0 + 0.5, geometric="wrist" not in key) * 2.0 - 1.0
        images[key] = image
        mask = observation.image_masks.get(key)
        # [b]
        masks[key] = jnp.ones(observation.state.shape[:-1], dtype=bool) if mask is None else jnp.asarray(mask)
    return dataclasses.replace(observation, images=images, image_masks=masks)


ActionDim = Annotated[int, ranges.Range(1, 4096, "joints of a robot, and many more")]
ActionHorizon = Annotated[int, ranges.Range(1, 10_000, "steps of a prediction, and many more")]
TokenLen = Annotated[int, ranges.Range(1, 100_000, "tokens of a prompt, and many more")]


@dataclasses.dataclass(frozen=True)
class BaseModelConfig(abc.ABC):
    """Configuration of a model. `create` and `load` make the model."""

    # Numbers per action, padding included.
    action_dim: ActionDim
    # Number of actions per prediction.
    action_horizon: ActionHorizon
    # Longest prompt, tokens.
    max_token_len: TokenLen

    @property
    @abc.abstractmethod
    def model_type(self) -> ModelType:
        """The family that the model belongs to."""

    @abc.abstractmethod
    def create(self, rng: at.KeyArrayLike) -> "BaseModel":
        """Create a model with random parameters."""

    @abc.abstractmethod
    def inputs_spec(self, *, batch_size: int = 1) -> tuple[Observation, Actions]:
        """Return shapes and dtypes of an observation and its actions, as ShapeDtypeStructs."""

    @abc.abstractmethod
    def get_freeze_filter(self) -> nnx.filterlib.Filter:
        """Return the filter of parameters that stay fixed (LoRA replaces them)."""

    def load(self, params: at.Params, *, remove_extra_params: bool = True) -> "BaseModel":
        """Create a model with the given parameters, which keep their dtypes.

        Args:
            params: Nested dicts of arrays.
            remove_extra_params: Log and leave out parameters that the model does not have.

        Raises:
            DataError: Parameters are missing, superfluous (if not removed), or of another shape. The message names each
                path.
        """
        graphdef, state = nnx.split(nnx.eval_shape(self.create, jax.random.key(0)))
        expected = traverse_util.flatten_dict(nnx_utils.to_pure_dict(state), sep="/")
        given = traverse_util.flatten_dict(params, sep="/")
        extra = sorted(given.keys() - expected.keys())
        if remove_extra_params and extra:
            logger.warning("leaving out %d parameters that the model does not have: %s", len(extra), ", ".join(extra))
            given = {path: given[path] for path in given.keys() & expected.keys()}
        _check_params(expected, given)
        nnx_utils.replace_by_pure_dict(state, traverse_util.unflatten_dict(given, sep="/"))
        return nnx.merge(graphdef, state)

    def fake_obs(self, batch_size: int = 1) -> Observation:
        """Return an observation of ones."""
        return _ones(self.inputs_spec(batch_size=batch_size)[0])

    def fake_act(self, batch_size: int = 1) -> Actions:
        """Return actions of ones."""
        return _ones(self.inputs_spec(batch_size=batch_size)[1])


def _ones(spec: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), spec)


def _check_params(expected: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    try:
        at.check_pytree_equality(expected=dict(expected), got=dict(given), check_shapes=True)
    except ValueError as e:
        raise errors.DataError(f"parameters do not fit the model ({e}). Is this a checkpoint of another config?") from e


class BaseModel(nnx.Module, abc.ABC):
    """A model: training loss and action sampling."""

    takes_slots_without_image: ClassVar[bool] = False
    """Whether a camera slot may have a False mask and no image, with the same result as a masked image."""

    def __init__(self, config: BaseModelConfig):
        self.action_dim = config.action_dim
        self.action_horizon = config.action_horizon
        self.max_token_len = config.max_token_len

    @abc.abstractmethod
    def compute_loss(
        self, rng: at.KeyArrayLike, observation: Observation, actions: Actions, *, train: bool = False
    ) -> at.Float[at.Array, "*b ah"] | at.Float[at.Array, " b"]:
        """Return the loss per sample and, for some models, per action."""

    def draw_loss_inputs(
        self, rng: at.KeyArrayLike, observation: Observation, actions: Actions, *, train: bool = False
    ) -> Any:
        """Do the random half of `compute_loss`.

        Returns:
            A pytree whose leaves have the sample as dimension 0. You may draw it for a whole batch and then cut it into any
            number of parts. Their losses are the same as those of the whole.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be trained: it has no draw_loss_inputs")

    def loss_of_inputs(self, inputs: Any) -> at.Float[at.Array, "*b ah"] | at.Float[at.Array, " b"]:
        """Do the other half of `compute_loss`.

        Args:
            inputs: The result of `draw_loss_inputs`, or a part of it.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be trained: it has no loss_of_inputs")

    @abc.abstractmethod
    def sample_actions(
        self, rng: at.KeyArrayLike, observation: Observation, **kwargs: Any
    ) -> at.Float[at.Array, "..."]:
        """Predict actions (pi0-FAST: their tokens) for a batched observation."""
