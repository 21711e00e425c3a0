from .cameras import Cameras as Cameras
from .cameras import Frame as Frame
from .cameras.settings import CameraSettings as CameraSettings
from .cameras.settings import open_cameras as open_cameras
from .emulator.robot import EmulatedRobot as EmulatedRobot
from .limits import MotionLimits as MotionLimits
from .replay import ReplayRobot as ReplayRobot
from .rm65.robot import Rm65Robot as Rm65Robot
from .rm65.settings import Rm65Settings as Rm65Settings
from .robot import BrakingRobot as BrakingRobot
from .robot import InspectedRobot as InspectedRobot
from .robot import LimitedRobot as LimitedRobot
from .robot import MeasuringRobot as MeasuringRobot
from .robot import RangedRobot as RangedRobot
from .robot import Robot as Robot
from .robot import RobotObservation as RobotObservation
from .robot import ShadowRobot as ShadowRobot
from .robot import TaskRobot as TaskRobot
from .robot import connected as connected
from .sim.robot import SimRobot as SimRobot

__all__ = [
    "BrakingRobot",
    "CameraSettings",
    "Cameras",
    "EmulatedRobot",
    "Frame",
    "InspectedRobot",
    "LimitedRobot",
    "MeasuringRobot",
    "MotionLimits",
    "RangedRobot",
    "ReplayRobot",
    "Rm65Robot",
    "Rm65Settings",
    "Robot",
    "RobotObservation",
    "ShadowRobot",
    "SimRobot",
    "TaskRobot",
    "connected",
    "open_cameras",
]
