"""The client with the vendor's SDK.

Its arms are emulated by another process, and its cameras see noise.
"""

import dataclasses
import os
from pathlib import Path
import sys
import time

import numpy as np

from realman import cli
from realman.arrays import Image
from realman.robots.cameras.frozen import FrozenCheck
from realman.robots.cameras.threads import ThreadedCameras
from realman.robots.emulator.settings import HOSTS
from realman.robots.rm65 import GripperSettings
from realman.robots.rm65 import Rm65Robot
from realman.robots.rm65 import Rm65Settings
from realman.runtime.safety import SafetySettings
from realman.station import client_command
from realman.station import site_config

FPS = 50.0
HIGH_RATE_HZ = 100.0
SAFETY = SafetySettings(
    # A busy machine must not end a run by itself, so times are generous. Limits of motion are the usual ones.
    max_joint_speed_deg_s=60.0,
    max_joint_acceleration_deg_s2=600.0,
    max_first_jump_deg=30.0,
    max_limit_ticks=50,
    max_observation_age_ms=5000.0,
    max_policy_age_ms=4000.0,
    max_overrun_ms=5000.0,
    max_late_ticks=100_000,
)
_CAMERAS = ("cam_high", "cam_left_wrist")
_MAX_FROZEN_S = 1.0


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the client's process."""

    tcp_port: int
    """TCP port of both arms."""
    push_port: int
    """UDP port for their state."""
    server_port: int
    """Port of the policy server."""
    follow: str
    """'low' or 'high'."""
    execution: str
    """How chunks are played."""
    steps: int
    """Number of control steps."""
    folder: Path
    """Where the run's report goes, and where a file names a fault of the camera."""


class NoiseCamera:
    """A camera of noise that breaks when a file says so."""

    def __init__(self, name: str, fault: Path) -> None:
        self.names: tuple[str, ...] = (name,)
        self._fault = fault
        self._numbers = np.random.default_rng(0)
        self._image = self._new_image()

    def open(self) -> None:
        """Do nothing."""

    def grab(self) -> dict[str, Image]:
        """Wait for the next image and return it."""
        time.sleep(1 / 30)
        fault = self._fault.read_text() if self._fault.exists() else ""
        if fault == "gone":
            raise OSError("no such device")
        if fault == "hangs":
            time.sleep(20)
        if fault != "frozen":
            self._image = self._new_image()
        return {self.names[0]: self._image.copy()}

    def close(self) -> None:
        """Do nothing."""

    def _new_image(self) -> np.ndarray:
        return self._numbers.integers(0, 256, (48, 64, 3), np.uint8)


def site_of(args: Args) -> site_config.Site:
    """Return the settings of the site."""
    rm65 = Rm65Settings(
        right_host=HOSTS["right"],
        left_host=HOSTS["left"],
        tcp_port=args.tcp_port,
        push_port=args.push_port,
        fps=FPS,
        follow=args.follow,  # type: ignore[arg-type]
        high_follow_rate_hz=HIGH_RATE_HZ,
        max_state_age_s=2.0,
        max_camera_age_s=2.5,
        reply_timeout_s=2.0,
        stop_timeout_s=3.0,
        connect_timeout_s=60.0,
        gripper=GripperSettings(max_age_s=3.0),
    )
    return site_config.Site(
        # The real driver, but a busy machine may be late, which the settings of real arms do not allow.
        robot="emulated",
        prompt="wave",
        execution=args.execution,  # type: ignore[arg-type]
        server=site_config.ServerSettings(port=args.server_port, reply_timeout_s=20.0),
        safety=SAFETY,
        rm65=rm65,
    )


def main(args: Args) -> int:
    """Run the client as `realman client` does."""
    fault = args.folder / "camera_fault"
    sources = [NoiseCamera(name, fault if name == _CAMERAS[0] else fault / "none") for name in _CAMERAS]
    cameras = ThreadedCameras([FrozenCheck(source, _MAX_FROZEN_S) for source in sources])
    site = site_of(args)
    robot = Rm65Robot(site.rm65, cameras, site.safety.motion())
    flags = client_command.Args(max_steps=args.steps, view=False, out_dir=args.folder / "run")
    return client_command.run_site(flags, site, robot)


if __name__ == "__main__":
    # The site's exit code is judged, and a proxy of this machine is not part of the site.
    os.environ["NO_PROXY"] = "*"
    sys.argv[0] = "robot_client"
    cli.run(main, Args)
