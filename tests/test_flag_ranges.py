"""No number of a settings class, a flag or a config can be one that no range allows."""

from collections.abc import Iterator
import dataclasses
import importlib
import importlib.util
import inspect
import math
from pathlib import Path
import re
import sys
from types import ModuleType
from typing import Any

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from benchmarks import prose
from openpi.models import gemma_config
from openpi.models import lora
from openpi.models import siglip
from openpi.serving.websocket_policy_server import ServerOptions
from openpi.shared import cli as framework_cli
from openpi.shared.errors import UserError
from openpi.training import config as _config
from openpi.training import optimizer
from openpi.training.configs.mixture import MixedDataset
from openpi_client import ranges
from realman import __main__ as command
from realman import cli
from realman.data.dataset.frames import Encoding
from realman.data.raw import RawOptions
from realman.data.raw.flags import ReadingFlags
from realman.errors import RealmanError
from realman.robots.cameras.settings import CameraSettings
from realman.robots.emulator.settings import ArmSettings
from realman.runtime.workspace import Box
from realman.station.site_config import Site

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "third_party/openpi/scripts"
# How settings classes are named.
_NAMES = re.compile(r"(Settings|Options|Args|Flags|Config|Factory|Schedule|Split|Site|Box|Encoding|AdamW|SGD)$")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ranges_of_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


serve_policy = script("serve_policy")
norm_stats = script("compute_norm_stats")
# Flags that a command cannot do without.
REQUIRED = {"convert": ["--raw-dir", "x"], "inspect": ["--data", "x"], "verify": ["--data", "x"]}
COMMANDS = {name: importlib.import_module(entry.module) for name, entry in command.COMMANDS.items()}


def instances() -> Iterator[Any]:
    """Yield an object of each class that holds settings."""
    yield Site()
    for name, module in COMMANDS.items():
        yield module.Args(
            **{"raw_dir" if flag == "--raw-dir" else "data": Path("x") for flag in REQUIRED.get(name, [])[:1]}
        )
    yield from (serve_policy.Args(), serve_policy.Replay("x"), norm_stats.Args("x"))
    yield from _config.all_configs().values()
    # These are chosen in code only.
    yield from (optimizer.RsqrtDecaySchedule(), optimizer.SGD(), lora.LoRAConfig(4), MixedDataset("a", 1.0))
    yield from (gemma_config.VARIANTS["gemma_300m"], siglip.get_config("mu/16"))
    yield from (ServerOptions(), ArmSettings("right"), RawOptions(), ReadingFlags(), Encoding())
    yield from (CameraSettings("opencv", device=0), Box((-1.0,) * 3, (1.0,) * 3))


def parts_of(value: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for field in dataclasses.fields(value):
            yield from parts_of(getattr(value, field.name))


SETTINGS = {type(part): part for value in instances() for part in parts_of(value)}
FIELDS = [
    (value, name, list(ranges.declared(hint)))
    for cls, value in SETTINGS.items()
    for name, hint in ranges.number_hints(cls).items()
]


def ids(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    return None if isinstance(part, list) else type(part).__name__


def all_dataclasses() -> Iterator[type]:
    for path in prose.tracked(ROOT):
        name = path.relative_to(ROOT).as_posix()
        for source in ("third_party/openpi/src/", "third_party/openpi/packages/openpi-client/src/", ""):
            if name.endswith(".py") and name.startswith(source + ("realman/" if not source else "openpi")):
                dotted = name.removeprefix(source).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                module = importlib.import_module(dotted)
                yield from (
                    cls
                    for cls in vars(module).values()
                    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == dotted
                )


def test_the_list_has_every_class_that_is_named_like_settings():
    found = {cls for cls in all_dataclasses() if _NAMES.search(cls.__name__) and not inspect.isabstract(cls)}
    assert len(found) > 30
    unlisted = {cls.__name__ for cls in found - SETTINGS.keys() if ranges.number_hints(cls)}
    # What a client asks of an emulated controller is a message, and what a checkpoint records is checked by its readers.
    assert unlisted == {"PushSettings", "StepSettings", "TrainedSettings"}


@pytest.mark.parametrize(("value", "name", "numbers"), FIELDS, ids=ids)
def test_every_number_has_a_finite_range_with_a_reason(value, name, numbers):
    for _, found in numbers:
        assert found, f"{type(value).__name__}.{name} has no range. Declare one: Annotated[..., Range(low, high, why)]"
        assert found[0].why


def with_number(value: Any, name: str, number: Any) -> Any:
    old = getattr(value, name)
    hint = str(ranges.number_hints(type(value))[name])
    if not isinstance(old, tuple) and (old is not None or "tuple" not in hint):
        return dataclasses.replace(value, **{name: number})
    # A tuple of fixed length needs its other numbers.
    others = old[:-1] if old else (0.0,) * (0 if "..." in hint else hint.count("Range(") - 1)
    return dataclasses.replace(value, **{name: (*others, number)})


@pytest.mark.parametrize(("value", "name", "numbers"), FIELDS, ids=ids)
def test_every_class_refuses_numbers_out_of_their_range(value, name, numbers):
    number, (allowed, *_) = numbers[-1]
    wrong = [math.nan, math.inf, -math.inf, number(allowed.low - 1), number(allowed.high * 2 + 1)]
    if number is float:
        wrong += [math.nextafter(allowed.low, -math.inf), math.nextafter(allowed.high, math.inf)]
    for each in wrong if number is float else wrong[3:]:
        with pytest.raises((RealmanError, UserError)) as caught:
            with_number(value, name, each)
        message = str(caught.value)
        assert "\n" not in message
        assert name in message.replace("-", "_")
        assert f": found {ranges.in_words(each)}, expected {allowed}" in message


@pytest.mark.parametrize(("value", "name", "numbers"), FIELDS, ids=ids)
@settings(max_examples=4)
@given(data=st.data())
def test_every_class_takes_numbers_in_their_range(value, name, numbers, data):
    number, (allowed, *_) = numbers[-1]
    low, high = (math.ceil(allowed.low), math.floor(allowed.high)) if number is int else (allowed.low, allowed.high)
    inside = data.draw(st.integers(low, high) if number is int else st.floats(low, high))
    refusal = ""
    try:
        made = getattr(with_number(value, name, inside), name)
    except (RealmanError, UserError) as e:
        # Another field does not fit. The range itself is not what refuses.
        refusal, made = str(e), inside
    assert str(allowed) not in refusal
    assert (made[-1] if isinstance(made, tuple) else made) == inside


def flags_of(args: type) -> list[tuple[str, list]]:
    return [(name, list(ranges.declared(hint))) for name, hint in ranges.number_hints(args).items()]


COMMAND_FLAGS = [
    *((name, field, found) for name, module in COMMANDS.items() for field, found in flags_of(module.Args)),
    *(("serve_policy", field, found) for field, found in flags_of(serve_policy.Args)),
    *(("compute_norm_stats", field, found) for field, found in flags_of(norm_stats.Args)),
]


def call(name: str, words: list[str], monkeypatch) -> tuple[Any, list]:
    """Start a command with its work replaced, and return its exit code and the flags that the work got."""
    got: list[Any] = []
    needed = REQUIRED.get(name, ["--config-name", "x"] if name == "compute_norm_stats" else [])
    monkeypatch.setattr(sys, "argv", [name, *needed, *words])

    def work(args: Any) -> None:
        got.append(args)

    parsers = {"serve_policy": serve_policy.Args, "compute_norm_stats": norm_stats.parse, "train": _config.cli}
    parser, run = (COMMANDS[name].Args, cli.run) if name in COMMANDS else (parsers[name], framework_cli.run)
    with pytest.raises(SystemExit) as ended:
        run(work, parser)
    return ended.value.code, got


@pytest.mark.parametrize(("name", "field", "numbers"), COMMAND_FLAGS, ids=ids)
def test_a_flag_out_of_range_is_refused_in_one_line_and_one_in_range_taken(name, field, numbers, monkeypatch, capsys):
    number, (allowed, *_) = numbers[-1]
    flag = f"--{field.replace('_', '-')}"
    wrong = [number(allowed.low - 1), number(allowed.high * 2 + 1)] + [math.nan, math.inf] * (number is float)
    for value in wrong:
        assert call(name, [flag, str(value)], monkeypatch) == (1, [])
        where = rf"{flag}(\[0\])?"
        line = rf"error: {where}: found {re.escape(ranges.in_words(value))}, expected {re.escape(str(allowed))}\n"
        assert re.fullmatch(line, capsys.readouterr().err)
    for value in (number(allowed.low), number(allowed.high)):
        code, (args,) = call(name, [flag, str(value)], monkeypatch)
        taken = getattr(args, field)
        assert (code, taken[0] if isinstance(taken, tuple) else taken) == (0, value)


TRAINING_FLAGS = [
    ("ema_decay", "nan", r"config 'debug_realman'\.ema_decay: found nan, expected 0 to "),
    ("batch_size", "0", r"config 'debug_realman'\.batch_size: found 0, expected 1 to "),
    ("max_loss_growth", "inf", r"config 'debug_realman'\.max_loss_growth: found inf, expected 1 to "),
    ("lr_schedule.peak_lr", "nan", r"lr_schedule\.peak_lr: found nan, expected 1e-12 to 10 "),
    ("optimizer.clip_gradient_norm", "nan", r"optimizer\.clip_gradient_norm: found nan, expected "),
    ("model.action_horizon", "-5", r"model\.action_horizon: found -5, expected 1 to "),
    ("model.rtc_max_delay", "50", r"model\.rtc_max_delay: found 50, expected 0 to 49"),
    ("data.validation.fraction", "nan", r"data\.validation\.fraction: found nan, expected 0 to "),
    ("data.validation.episodes", "-1", r"data\.validation\.episodes\[0\]: found -1, expected 0 to "),
    ("data.mixture", "a:nan", r"mixture 'a:nan'\.weight: found nan, expected "),
]


@pytest.mark.parametrize(("field", "value", "message"), TRAINING_FLAGS, ids=[row[0] for row in TRAINING_FLAGS])
def test_a_training_flag_out_of_range_is_refused_in_one_line(field, value, message):
    # Statistics and training read flags of a config in this way.
    with pytest.raises(UserError, match=message) as caught:
        _config.with_flags(_config.get_config("debug_realman"), [f"--{field.replace('_', '-')}", value])
    assert "\n" not in str(caught.value)


def test_training_prints_that_line_and_nothing_else(monkeypatch, capsys):
    words = ["debug_realman", "--exp-name", "x", "--data.validation.fraction", "nan"]
    assert call("train", words, monkeypatch) == (1, [])
    line = r"error: data\.validation\.fraction: found nan, expected 0 to 0\.999 \(.*\)\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_a_training_flag_in_range_is_taken_exactly():
    flags = ["--ema-decay", "0.5", "--lr-schedule.warmup-steps", "0", "--num-workers", "0", "--keep-period", "None"]
    made = _config.with_flags(_config.get_config("debug_realman"), flags)
    assert (made.ema_decay, made.lr_schedule.warmup_steps, made.num_workers, made.keep_period) == (0.5, 0, 0, None)
