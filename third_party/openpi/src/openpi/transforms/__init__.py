"""Small callables from dict to dict, which prepare data for a model.

Training and serving use the same ones. A transform works on one unbatched sample, a nested dict of numpy leaves, and returns
a new dict. It never changes the dict or the arrays that it was given.

The order in training is: repack, data transforms, `Normalize`, model transforms. Serving runs the inputs without repacking,
then the outputs in reverse order.
"""

from openpi.shared.normalize import NormStats
from openpi.transforms.base import CompositeTransform
from openpi.transforms.base import DataDict
from openpi.transforms.base import DataTransformFn
from openpi.transforms.base import Group
from openpi.transforms.base import RepackTransform
from openpi.transforms.base import compose
from openpi.transforms.images import DropImages
from openpi.transforms.images import ResizeImages
from openpi.transforms.prompts import ActionTokenizer
from openpi.transforms.prompts import ExtractFASTActions
from openpi.transforms.prompts import InjectDefaultPrompt
from openpi.transforms.prompts import PromptFromLeRobotTask
from openpi.transforms.prompts import TokenizeFASTInputs
from openpi.transforms.prompts import TokenizePrompt
from openpi.transforms.tree import MissingKeyError
from openpi.transforms.tree import apply_tree
from openpi.transforms.tree import flatten_dict
from openpi.transforms.tree import transform_dict
from openpi.transforms.tree import unflatten_dict
from openpi.transforms.vectors import AbsoluteActions
from openpi.transforms.vectors import DeltaActions
from openpi.transforms.vectors import Normalize
from openpi.transforms.vectors import NormStatsTree
from openpi.transforms.vectors import PadStatesAndActions
from openpi.transforms.vectors import SubsampleActions
from openpi.transforms.vectors import Unnormalize
from openpi.transforms.vectors import make_bool_mask
from openpi.transforms.vectors import pad_to_dim

__all__ = [
    "AbsoluteActions",
    "ActionTokenizer",
    "CompositeTransform",
    "DataDict",
    "DataTransformFn",
    "DeltaActions",
    "DropImages",
    "ExtractFASTActions",
    "Group",
    "InjectDefaultPrompt",
    "MissingKeyError",
    "NormStats",
    "NormStatsTree",
    "Normalize",
    "PadStatesAndActions",
    "PromptFromLeRobotTask",
    "RepackTransform",
    "ResizeImages",
    "SubsampleActions",
    "TokenizeFASTInputs",
    "TokenizePrompt",
    "Unnormalize",
    "apply_tree",
    "compose",
    "flatten_dict",
    "make_bool_mask",
    "pad_to_dim",
    "transform_dict",
    "unflatten_dict",
]
