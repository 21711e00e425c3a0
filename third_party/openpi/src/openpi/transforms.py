"""Everything between a dataset and a model: small callables from dict to dict, used alike in training and in serving.

A transform works on one unbatched sample, a nested dict of numpy leaves, and returns a new dict: it never changes the
dict or the arrays that it was given. Order, training: repack, data transforms, `Normalize`, model transforms. Serving runs
the inputs without repacking, then the outputs in reverse order.
"""

from openpi._transforms.base import CompositeTransform
from openpi._transforms.base import DataDict
from openpi._transforms.base import DataTransformFn
from openpi._transforms.base import Group
from openpi._transforms.base import RepackTransform
from openpi._transforms.base import compose
from openpi._transforms.images import DropImages
from openpi._transforms.images import ResizeImages
from openpi._transforms.prompts import ActionTokenizer
from openpi._transforms.prompts import ExtractFASTActions
from openpi._transforms.prompts import InjectDefaultPrompt
from openpi._transforms.prompts import PromptFromLeRobotTask
from openpi._transforms.prompts import TokenizeFASTInputs
from openpi._transforms.prompts import TokenizePrompt
from openpi._transforms.tree import MissingKeyError
from openpi._transforms.tree import apply_tree
from openpi._transforms.tree import flatten_dict
from openpi._transforms.tree import transform_dict
from openpi._transforms.tree import unflatten_dict
from openpi._transforms.vectors import AbsoluteActions
from openpi._transforms.vectors import DeltaActions
from openpi._transforms.vectors import Normalize
from openpi._transforms.vectors import NormStatsTree
from openpi._transforms.vectors import PadStatesAndActions
from openpi._transforms.vectors import SubsampleActions
from openpi._transforms.vectors import Unnormalize
from openpi._transforms.vectors import make_bool_mask
from openpi._transforms.vectors import pad_to_dim
from openpi.shared.normalize import NormStats

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
