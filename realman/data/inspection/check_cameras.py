"""Are all cameras there, alive, and on the arm that their name says?"""

from collections.abc import Iterator

import numpy as np

from realman import spec
from realman.data.inspection import arm_views
from realman.data.inspection.arm_views import CLEAR_DIFFERENCE
from realman.data.inspection.images import CameraMeasure
from realman.data.inspection.images import ImageMeasure
from realman.data.inspection.survey import Finding
from realman.data.inspection.survey import Survey
from realman.data.inspection.survey import counted
from realman.data.inspection.survey import some

WRIST_CAMERAS = {"right": "cam_right_wrist", "left": "cam_left_wrist"}
HIGH_CAMERA = "cam_high"
_UNUSED_CAMERA = "cam_low"

_SEEN_TRAVEL_RAD = 0.1
"""Between two frames, an arm that moves this far (summed over its joints) changes every picture that shows it."""

_LONG_FREEZE_S = 0.5
_MANY_BLANK = 0.2
"""Share of blank frames from which a camera counts as broken rather than as dark for a moment."""


def check_presence(survey: Survey) -> Iterator[Finding]:
    """Cameras that are missing, unreadable, of different sizes, or not used."""
    for name, images in survey.images.items():
        for problem in images.problems:
            remedy = (
                "record the episode again, or leave it out with --skip-bad" if survey.is_raw else "convert it again"
            )
            yield Finding("error", "picture-damaged", problem, remedy, (name,))
    seen = [set(p.cameras) for p in survey.images.values() if not p.problems]
    if not seen:
        return
    everywhere, somewhere = set.intersection(*seen), set.union(*seen)
    absent = [c for c in survey.cameras if c not in somewhere]
    other = sorted(somewhere - set(survey.cameras))
    if absent:
        flag = f"--cameras {' '.join(c for c in survey.cameras if c in somewhere)}"
        rename = (
            f"if {other[0]} is it, {survey.convert_with(f'--camera-map {other[0]}={absent[0]}')}; " if other else ""
        )
        remedy = (
            f"{rename}check the recorder, or {survey.convert_with(flag)}; a missing wrist camera becomes a masked image"
        )
        yield Finding(
            "error" if survey.is_raw else "note", "camera-missing", f"no episode has {some(absent, 4)}", remedy
        )
    for camera in sorted(somewhere - everywhere):
        without = [n for n, p in survey.images.items() if camera not in p.cameras and not p.problems]
        text = f"{camera} is missing in {counted(len(without), 'episode')}: {some(without)}"
        remedy = "leave these episodes out with --skip-bad, or the camera with --cameras"
        yield Finding("error", "camera-missing", text, remedy, tuple(without))
    if other:
        remedy = f"if they should be used under another name, {survey.convert_with('--camera-map RECORDED=NAME')}"
        yield Finding("note", "camera-unused", f"{some(other, 4)} will be left out", remedy)
    if {HIGH_CAMERA, _UNUSED_CAMERA} <= somewhere:
        text = f"{_UNUSED_CAMERA} is stored but not shown to the model, which has three image slots"
        remedy = f"train with --data.base-camera {_UNUSED_CAMERA} to show it instead of {HIGH_CAMERA}"
        yield Finding("note", "camera-unused", text, remedy)
    yield from _check_sizes(survey, sorted(somewhere))


def _check_sizes(survey: Survey, cameras: list[str]) -> Iterator[Finding]:
    for camera in cameras:
        sizes = sorted({p.cameras[camera].size for p in survey.images.values() if camera in p.cameras})
        if len(sizes) > 1:
            text = f"{camera} has pictures of different sizes: {', '.join(f'{h}x{w} px' for h, w in sizes)}"
            yield Finding("error", "camera-size", text, "convert each size to a dataset of its own (--episodes)")


def check_blank(survey: Survey) -> Iterator[Finding]:
    """Pictures that show nothing: black, white or a single colour."""
    for camera, measures in _by_camera(survey).items():
        shares = {name: float(m.is_blank.mean()) for name, (_, m) in measures.items() if m.is_blank.any()}
        if shares:
            worst = max(shares, key=shares.__getitem__)
            level = float(measures[worst][1].brightness[measures[worst][1].is_blank].mean())
            kind = "black" if level < 16 else "white" if level > 240 else "of a single colour"
            first = int(measures[worst][0].frames[np.argmax(measures[worst][1].is_blank)])
            yield Finding(
                "error" if shares[worst] >= _MANY_BLANK else "warning",
                "blank-picture",
                f"{camera} is {kind} in {shares[worst]:.0%} of the frames of {worst}, first at frame {first} "
                f"({counted(len(shares), 'episode')} in all)",
                "check lens cap, cable and exposure; leave these episodes out with --episodes, or the camera with --cameras",
                tuple(shares),
            )


def check_frozen(survey: Survey) -> Iterator[Finding]:
    """Pictures that stand still while the arm they must show moves."""
    crossed = find_crossed(survey)
    for camera, measures in _by_camera(survey).items():
        if camera in crossed:
            continue  # it watches the other arm
        whole, partly = [], {}
        for name, (images, measure) in measures.items():
            longest_s, share = _freeze(images, measure, camera, survey.readable[0].fps)
            if share == 1:
                whole.append(name)
            elif longest_s >= _LONG_FREEZE_S:
                partly[name] = longest_s
        if whole:
            text = f"{camera} shows one still picture while the arm moves, in {counted(len(whole), 'episode')}: {some(whole)}"
            remedy = "check cable and driver; leave these episodes out with --episodes, or the camera with --cameras"
            yield Finding("error", "frozen-camera", text, remedy, tuple(whole))
        if partly:
            worst = max(partly, key=partly.__getitem__)
            text = f"{camera} stands still for {partly[worst]:.1f} s of {worst} while the arm moves ({counted(len(partly), 'episode')} in all)"
            remedy = "check the camera's USB bandwidth; leave these episodes out with --episodes"
            yield Finding("warning", "frozen-camera", text, remedy, tuple(partly))


def _freeze(images: ImageMeasure, measure: CameraMeasure, camera: str, fps: float) -> tuple[float, float]:
    """Longest freeze in s, and share of frozen intervals among those in which the arm moves (0 when there are few)."""
    sides = [i for i, side in enumerate(spec.SIDES) if WRIST_CAMERAS[side] == camera] or [0, 1]
    moving = images.travel[:, sides].max(axis=1) > _SEEN_TRAVEL_RAD
    moving &= ~measure.is_blank[1:]  # reported as blank
    frozen = (measure.change == 0) & moving
    if moving.sum() < 3:
        return 0.0, 0.0
    length_s = np.diff(images.frames) / fps
    longest = run = 0.0
    for is_frozen, seconds in zip(frozen, length_s, strict=True):
        run = run + float(seconds) if is_frozen else 0.0
        longest = max(longest, run)
    return longest, float(frozen.sum() / moving.sum())


def find_agreeing(survey: Survey) -> list[str]:
    """Wrist cameras whose picture clearly moves with their own arm."""
    return [c for c, (side, view) in _wrist_views(survey).items() if view.prefers(side) > CLEAR_DIFFERENCE]


def find_crossed(survey: Survey) -> list[str]:
    """Wrist cameras whose picture clearly moves with the other arm.

    A camera on an arm at rest may watch the other arm, so its own arm must move for a verdict. When only one arm moves, the camera
    on it sees the larger change.
    """
    views = _wrist_views(survey)
    crossed = [
        camera
        for camera, (side, view) in views.items()
        if view.prefers(side) < -CLEAR_DIFFERENCE
        and view.moving_intervals[spec.SIDES.index(side)] >= arm_views.MIN_INTERVALS
    ]
    if crossed or len(views) < len(WRIST_CAMERAS):
        return crossed
    for i, side in enumerate(spec.SIDES):
        own, other = views[WRIST_CAMERAS[side]][1], views[WRIST_CAMERAS[spec.SIDES[1 - i]]][1]
        if own.moving_intervals[i] >= arm_views.MIN_INTERVALS and own.moving_intervals[1 - i] == 0:
            return list(views) if other.change_while_moving[i] > 2 * own.change_while_moving[i] else []
    return []


def _wrist_views(survey: Survey) -> dict[str, tuple[str, arm_views.ArmView]]:
    """Side and view of the wrist cameras that are there."""
    views = survey.arm_views
    return {camera: (side, views[camera]) for side, camera in WRIST_CAMERAS.items() if camera in views}


def check_wrists(survey: Survey) -> Iterator[Finding]:
    """Arms or wrist cameras that have each other's name."""
    crossed, agreeing = find_crossed(survey), find_agreeing(survey)
    if crossed and set(agreeing) - set(crossed):
        text = f"both wrist cameras move with one arm: {crossed[0]} should move with the other"
        yield Finding(
            "error", "wrist-cameras", text, "check that the recorder opens two different cameras, by serial number"
        )
    elif crossed:
        text = f"{' and '.join(crossed)} {'move' if len(crossed) > 1 else 'moves'} with the other arm: arms or wrist cameras are exchanged"
        yield Finding("error", "swapped-sides", text, _remedy_for_crossing(survey))
    elif survey.high_view != "unknown" and _high_camera_contradicts(survey):
        text = f"in {HIGH_CAMERA} the right arm is seen where the left one should be"
        flags = f"{_swap_arms_flag(survey)} {_swap_cameras_flag(survey)}"
        remedy = f"arms and wrist cameras are both exchanged: {survey.convert_with(flags)}; or --high-view is wrong"
        yield Finding("error", "swapped-sides", text, remedy)


def _swap_arms_flag(survey: Survey) -> str:
    other = "right_left" if survey.data.options.raw_arm_order == "left_right" else "left_right"
    return f"--raw-arm-order {other}"


def _swap_cameras_flag(survey: Survey) -> str:
    """Every camera under the name it should have; a map that is in use already is taken into account."""
    recorded_as = {name: recorded for recorded, name in survey.data.options.camera_map}
    left, right = WRIST_CAMERAS["left"], WRIST_CAMERAS["right"]
    return f"--camera-map {recorded_as.get(left, left)}={right} {recorded_as.get(right, right)}={left}"


def _high_camera_contradicts(survey: Survey) -> bool:
    """Whether the high camera sees the right arm on the side where the left one should be."""
    view = survey.arm_views.get(HIGH_CAMERA)
    if view is None:
        return False
    expected = 1 if survey.high_view == "from_robot" else -1
    return view.right_arm_side * expected < -CLEAR_DIFFERENCE


def _remedy_for_crossing(survey: Survey) -> str:
    """Wrist pictures alone cannot tell which of the two is wrong; the high camera can, when its place is known."""
    if survey.high_view != "unknown" and HIGH_CAMERA in survey.arm_views:
        if _high_camera_contradicts(survey):
            return f"the arms are exchanged: {survey.convert_with(_swap_arms_flag(survey))}"
        return (
            f"the wrist cameras are exchanged: {survey.convert_with(_swap_cameras_flag(survey))}, and mend the recorder"
        )
    hint = ""
    view = survey.arm_views.get(HIGH_CAMERA)
    if view is not None and abs(view.right_arm_side) > CLEAR_DIFFERENCE:
        half = "right" if view.right_arm_side > 0 else "left"
        hint = f"in {HIGH_CAMERA} the arm recorded as right moves in the {half} half: "
    return (
        f"{hint}if that is the robot's left arm, {survey.convert_with(_swap_arms_flag(survey))}; otherwise "
        f"{survey.convert_with(_swap_cameras_flag(survey))} (inspect again with --high-view from_robot or --high-view towards_robot, "
        f"whichever way {HIGH_CAMERA} looks, and this is decided)"
    )


def _by_camera(survey: Survey) -> dict[str, dict[str, tuple[ImageMeasure, CameraMeasure]]]:
    """Measures by camera and episode."""
    names = dict.fromkeys(c for p in survey.images.values() for c in p.cameras)
    return {
        camera: {n: (p, p.cameras[camera]) for n, p in survey.images.items() if camera in p.cameras}
        for camera in names
    }
