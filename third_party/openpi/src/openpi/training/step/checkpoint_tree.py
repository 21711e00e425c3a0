"""Convert a train state to and from its tree on disk.

Every parameter path gets a last key "value", because the original serializes an nnx state in this way. The averaged
parameters, if there are any, become the item `params`. The static parts of the state are null entries:

    params       {"params": <what is served: averaged if averaging is on, else raw>}
    train_state  {"step", "params": <raw if averaging is on, else {}>, "opt_state", "model_def": None, "ema_params": None}
"""

from typing import Any

from flax import nnx
import flax.traverse_util
import jax

from openpi.shared import nnx_utils
from openpi.training.step.train_state import TrainState

_VALUE = "value"


def to_disk(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the trees of the items `params` and `train_state`.

    Their leaves are those of `state`.
    """
    raw = _to_plain(state.params)
    averaged = None if state.ema_params is None else _to_plain(state.ema_params)
    train_state = {
        "step": state.step,
        "params": {} if averaged is None else raw,
        "opt_state": jax.tree.map(lambda x: _to_plain(x) if _is_state(x) else x, state.opt_state, is_leaf=_is_state),
        "model_def": None,
        "ema_params": None,
    }
    return {"params": raw if averaged is None else averaged}, train_state


def from_disk(template: TrainState, params: dict[str, Any], train_state: dict[str, Any]) -> TrainState:
    """Undo `to_disk`: put the leaves into the structure of `template`."""
    served = params["params"]
    if template.ema_params is None:
        raw, ema_params = _from_plain(template.params, served), None
    else:
        raw, ema_params = _from_plain(template.params, train_state["params"]), _from_plain(template.ema_params, served)
    opt_state = jax.tree.map(
        lambda expected, found: _from_plain(expected, found) if _is_state(expected) else found,
        template.opt_state,
        train_state["opt_state"],
        is_leaf=_is_state,
    )
    return template.replace(step=train_state["step"], params=raw, opt_state=opt_state, ema_params=ema_params)


def _is_state(x: Any) -> bool:
    return isinstance(x, nnx.State)


def _to_plain(state: nnx.State) -> dict[str, Any]:
    flat = flax.traverse_util.flatten_dict(nnx_utils.to_pure_dict(state))
    return flax.traverse_util.unflatten_dict({(*path, _VALUE): leaf for path, leaf in flat.items()})


def _from_plain(template: nnx.State, plain: dict[str, Any]) -> nnx.State:
    flat = flax.traverse_util.flatten_dict(plain)
    state = jax.tree.map(lambda leaf: leaf, template)  # a copy of the structure
    nnx_utils.replace_by_pure_dict(
        state, flax.traverse_util.unflatten_dict({path[:-1]: leaf for path, leaf in flat.items()})
    )
    return state
