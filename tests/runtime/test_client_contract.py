"""The client against the metadata of a real config's server."""

import pathlib

import pytest

from openpi.policies import realman_policy
from openpi.serving import contract_metadata
from openpi.training import config as _config
from realman import spec
from realman.errors import ServerError
from realman.runtime.client import read_metadata


@pytest.fixture(scope="module")
def metadata(golden_dir: pathlib.Path) -> dict:
    config = _config.get_config("pi0_realman")
    return contract_metadata.describe_checkpoint(
        config,
        config.data.create(None, config.model),
        golden_dir / "pi0_checkpoint" / "7",
        example=realman_policy.make_realman_example(),
        default_prompt=None,
    )


def _read(metadata: dict, **changes):
    return read_metadata({**metadata, **changes}, address="server", cameras=spec.CAMERAS, fps=50.0)


def test_the_contract_of_a_served_checkpoint_fits_this_robot(metadata):
    info = _read(metadata)
    assert (info.action_chunk, info.action_horizon) == (25, 50)
    assert info.metadata["config"] == "pi0_realman"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("units", {"joints": "deg", "grippers": "0..1, 1 = open"}),
        ("units", {"joints": "rad", "grippers": "0..1, 0 = open"}),
        ("state_dim", 13),
        ("image_size", [448, 448]),
        ("robot", "aloha"),
        ("fps", 30),
        ("action_chunk", 51),
        ("dim_names", list(reversed(spec.DIM_NAMES))),
        ("cameras", ["cam_front"]),
    ],
)
def test_every_difference_is_refused_by_its_name(metadata, key, value):
    with pytest.raises(ServerError, match=f"'{key}'"):
        _read(metadata, **{key: value})


def test_all_differences_are_named_at_once(metadata):
    with pytest.raises(ServerError) as failure:
        _read(metadata, state_dim=7, fps=10, units={})
    for key in ("state_dim", "fps", "units"):
        assert f"'{key}'" in str(failure.value)
