"""The two grippers that a controller's tool port may have.

An EG2-4C2 takes controller commands. A CTAG 90D takes Modbus registers.
"""

import dataclasses
import enum

FULL_OPENING = 1000
"""Full opening of an EG2-4C2 in its own dimensionless units. 0 is closed."""

CTAG_FULL_TRAVEL = 9000
"""Position register of a fully closed CTAG 90D: width in m = (9000 - register) * 1e-5."""

MAX_SPEED = 1000


class Register(enum.IntEnum):
    """Modbus holding registers of a CTAG gripper."""

    ENABLE = 256
    TARGET_HIGH = 258
    TARGET_LOW = 259
    SPEED_PERCENT = 260
    FORCE_PERCENT = 261
    TRIGGER = 264
    TORQUE_REACHED = 0x601
    POSITION_REACHED = 0x602
    POSITION_HIGH = 0x60D
    POSITION_LOW = 0x60E
    ALARM = 0x612


class Mode(enum.IntEnum):
    """State that an EG2-4C2 reports."""

    IDLE_OPEN = 1
    IDLE_CLOSED = 2
    STOPPED = 3
    CLOSING = 4
    OPENING = 5


@dataclasses.dataclass
class Gripper:
    """Target and limits of one gripper of either kind.

    The physics owns its position.

    Attributes:
        target: Wanted opening, 0 closed .. 1 open.
        speed: Share of full speed.
        route: Smallest and largest opening, EG2 units.
        registers: Last written Modbus registers.
        is_modbus: Whether the tool port speaks Modbus. If so, native commands are refused, otherwise Modbus ones.
    """

    target: float = 1.0
    speed: float = 1.0
    route: tuple[int, int] = (0, FULL_OPENING)
    is_modbus: bool = False
    registers: dict[int, int] = dataclasses.field(default_factory=dict)
    _awaits_arrival: bool = False

    def move(self, opening: float, *, speed: float = 1.0, notify: bool = False) -> bool:
        """Go to an opening in EG2 units (0..1000).

        Args:
            opening: The opening.
            speed: Share of full speed.
            notify: Whether to send an event on arrival.

        Returns:
            Whether the motion is allowed.
        """
        if self.is_modbus or not 0 <= opening <= FULL_OPENING:
            return False
        low, high = self.route
        self.target = min(max(opening, low), high) / FULL_OPENING
        self.speed = speed
        self._awaits_arrival = notify
        return True

    def set_route(self, low: int, high: int) -> bool:
        """Limit the stroke, EG2 units. Return whether the limits are valid."""
        if not 0 <= low < high <= FULL_OPENING:
            return False
        self.route = (low, high)
        return True

    def arrived(self, position: float) -> bool:
        """Return once whether an awaited arrival has happened."""
        if self._awaits_arrival and abs(position - self.target) < 0.5 / FULL_OPENING:
            self._awaits_arrival = False
            return True
        return False

    def mode(self, position: float) -> Mode:
        """Return what an EG2 reports as its state."""
        if abs(position - self.target) >= 0.5 / FULL_OPENING:
            return Mode.OPENING if position < self.target else Mode.CLOSING
        if position >= 1.0:
            return Mode.IDLE_OPEN
        return Mode.IDLE_CLOSED if position <= 0.0 else Mode.STOPPED

    def write(self, address: int, values: list[int]) -> bool:
        """Write Modbus registers of 16 bits each. The trigger starts the motion.

        Returns:
            Whether the tool port speaks Modbus and every value fits.
        """
        if not self.is_modbus or not all(0 <= v <= 0xFFFF for v in values):
            return False
        self.registers.update({address + i: v for i, v in enumerate(values)})
        if self.registers.get(Register.TRIGGER) and self.registers.get(Register.ENABLE):
            self.registers[Register.TRIGGER] = 0
            high, low = self.registers.get(Register.TARGET_HIGH, 0), self.registers.get(Register.TARGET_LOW, 0)
            travel = min((high << 16) + low, CTAG_FULL_TRAVEL)
            self.target = 1.0 - travel / CTAG_FULL_TRAVEL
            self.speed = self.registers.get(Register.SPEED_PERCENT, 100) / 100
        return True

    def read(self, address: int, count: int, position: float) -> list[int] | None:
        """Read Modbus registers. Return None unless the tool port speaks Modbus."""
        if not self.is_modbus:
            return None
        travel = round((1.0 - position) * CTAG_FULL_TRAVEL)
        feedback = {
            Register.POSITION_HIGH: travel >> 16,
            Register.POSITION_LOW: travel & 0xFFFF,
            Register.POSITION_REACHED: int(abs(position - self.target) * CTAG_FULL_TRAVEL < 1),
            Register.TORQUE_REACHED: 0,
            Register.ALARM: 0,
        }
        return [feedback.get(a, self.registers.get(a, 0)) for a in range(address, address + count)]  # type: ignore[call-overload]
