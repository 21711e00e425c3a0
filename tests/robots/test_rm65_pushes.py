"""The SDK's UDP thread waits while a handle is released: through the real SDK, and in the router alone."""

import dataclasses
import threading
import time

import pytest

from realman.robots.emulator import Emulator
from realman.robots.emulator.settings import free_ports
from realman.robots.emulator.settings import two_arms
from realman.robots.rm65 import pushes
from realman.robots.rm65.pushes import PushRouter


@dataclasses.dataclass
class Push:
    number: int
    arm_ip: bytes = b"10.0.0.1"


class Sender:
    """A thread that delivers pushes one after the other, as the SDK's thread does."""

    def __init__(self, router: PushRouter) -> None:
        self.num_sent = 0
        self._router = router
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(0.001):
            self._router.deliver(Push(self.num_sent))
            self.num_sent += 1

    def __enter__(self) -> "Sender":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def router() -> PushRouter:
    router = PushRouter()
    # The state after the first `add`, so that routing needs no SDK.
    router._callback = object()
    return router


def wait_until(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    assert condition()


def test_pushes_go_to_the_receiver_of_their_address_until_it_is_removed(router):
    seen: list[Push] = []
    router.add("10.0.0.1", seen.append)
    router.deliver(Push(1))
    router.deliver(Push(2, b"10.0.0.2"))
    router.remove("10.0.0.1")
    router.deliver(Push(3))
    assert seen == [Push(1)]


def test_a_pause_begins_when_the_thread_waits_and_loses_nothing(router, monkeypatch):
    monkeypatch.setattr(pushes, "_ARRIVAL_S", 60.0)
    monkeypatch.setattr(pushes, "_RECENT_S", 60.0)
    seen: list[int] = []
    router.add("10.0.0.1", lambda push: seen.append(push.number))
    with Sender(router) as sender:
        wait_until(lambda: seen)
        with router.paused(), router.paused():
            held = sender.num_sent
            time.sleep(0.05)
            assert sender.num_sent == held
            assert len(seen) == held
        wait_until(lambda: len(seen) > held + 3)
    assert seen == list(range(len(seen)))


def test_a_pause_does_not_wait_when_no_arm_pushes(router, monkeypatch):
    monkeypatch.setattr(pushes, "_ARRIVAL_S", 1e6)
    with router.paused():
        pass
    router.deliver(Push(1))
    monkeypatch.setattr(pushes, "_RECENT_S", 0.0)
    with router.paused():
        pass


def test_a_hanging_call_does_not_withhold_the_other_arms_state_forever(router, monkeypatch):
    monkeypatch.setattr(pushes, "_LONGEST_PAUSE_S", 0.01)
    seen: list[Push] = []
    router.add("10.0.0.1", seen.append)
    with router.paused():
        router.deliver(Push(1))
        assert seen == [Push(1)]


def test_the_sdk_delivers_nothing_while_it_is_paused_and_an_arm_can_be_released_then(monkeypatch):
    pytest.importorskip("Robotic_Arm", reason="needs the vendor's SDK: pip install Robotic_Arm")
    from realman.robots.rm65 import handle
    from realman.robots.rm65 import sdk

    monkeypatch.setattr(pushes, "_ARRIVAL_S", 60.0)
    monkeypatch.setattr(pushes, "_RECENT_S", 60.0)
    monkeypatch.setattr(pushes, "_LONGEST_PAUSE_S", 60.0)
    seen: list[bytes] = []
    port, push_port = free_ports()
    with Emulator(two_arms(port, push_port)) as emulator:
        arms = {host: sdk.new_arm() for host in ("127.0.0.1", "127.0.0.2")}
        for host, arm in arms.items():
            pushes.router.add(host, lambda push: seen.append(push.arm_ip))
            assert handle.open_handle(arm, host, port)
        try:
            wait_until(lambda: {b"127.0.0.1", b"127.0.0.2"} <= set(seen))
            with pushes.router.paused():
                held = len(seen)
                arms.pop("127.0.0.1").rm_delete_robot_arm()
                wait_until(lambda: emulator.num_clients("right") == 0)
                assert len(seen) == held
            wait_until(lambda: b"127.0.0.2" in seen[held:])
        finally:
            for host in ("127.0.0.1", "127.0.0.2"):
                pushes.router.remove(host)
            for arm in arms.values():
                handle.close_handle(arm)
