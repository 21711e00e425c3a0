"""Check that all cameras exist, work, and are on the right arm."""

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
"""An arm that moves this far between two frames (summed over its joints) changes every image that shows it."""

_LONG_FREEZE_S = 0.5
_MANY_BLANK = 0.2
"""Share of blank frames above which a camera counts as broken and not just dark for a moment."""


def check_presence(survey: Survey) -> Iterator[Finding]:
    """Find cameras that are missing, unreadable, of different sizes, or not used."""
    for name, images in survey.images.items():
        for problem in images.problems:
            remedy = (
                "record the episode again, or leave it out with --skip-bad" if survey.is_raw else "convert it again"
            )
            yield Finding("error", "picture-damaged", problem, remedy, (name,))
    seen = [set(p.cameras) for p in survey.images.values() if not p.problems]
    if not seen:
        return
    # Cameras that no episode has, then those that only some episodes have, then those that will not be used.
    everywhere, somewhere = set.intersection(*seen), set.union(*seen)
    absent = [c for c in survey.cameras if c not in somewhere]
    other = sorted(somewhere - set(survey.cameras))
    if absent:
        flag = f"--cameras {' '.join(c for c in survey.cameras if c in somewhere)}"
        rename = (
            f"if {other[0]} is this camera, {survey.convert_with(f'--camera-map {other[0]}={absent[0]}')}. Otherwise "
            if other
            else ""
        )
        remedy = (
            f"{rename}check the recorder, or {survey.convert_with(flag)}. A missing wrist camera becomes a masked image"
        )
        yield Finding(
            "error" if survey.is_raw else "note", "camera-missing", f"no episode has {some(absent, 4)}", remedy
        )
    for camera in sorted(somewhere - everywhere):
        without = [n for n, p in survey.images.items() if camera not in p.cameras and not p.problems]
        text = f"{camera} is missing from {counted(len(without), 'episode')}: {some(without)}"
        remedy = "leave these episodes out with --skip-bad, or the camera with --cameras"
        yield Finding("error", "camera-missing", text, remedy, tuple(without))
    if other:
        remedy = f"to use them under another name, {survey.convert_with('--camera-map RECORDED=NAME')}"
        yield Finding("note", "camera-unused", f"{some(other, 4)} will be left out", remedy)
    if {HIGH_CAMERA, _UNUSED_CAMERA} <= somewhere:
        text = f"{_UNUSED_CAMERA} is stored, but the model does not see it because it has only three image slots"
        remedy = f"train with --data.base-camera {_UNUSED_CAMERA} to use it instead of {HIGH_CAMERA}"
        yield Finding("note", "camera-unused", text, remedy)
    yield from _check_sizes(survey, sorted(somewhere))


def _check_sizes(survey: Survey, cameras: list[str]) -> Iterator[Finding]:
    for camera in cameras:
        sizes = sorted({p.cameras[camera].size for p in survey.images.values() if camera in p.cameras})
        if len(sizes) > 1:
            text = f"{camera} has images of different sizes: {', '.join(f'{h}x{w} px' for h, w in sizes)}"
            yield Finding("error", "camera-size", text, "convert each size to a dataset of its own (--episodes)")


def check_blank(survey: Survey) -> Iterator[Finding]:
    """Find images that show nothing: black, white or a single color."""
    for camera, measures in _by_camera(survey).items():
        shares = {name: float(m.is_blank.mean()) for name, (_, m) in measures.items() if m.is_blank.any()}
        if shares:
            worst = max(shares, key=shares.__getitem__)
            level = float(measures[worst][1].brightness[measures[worst][1].is_blank].mean())
            kind = "black" if level < 16 else "white" if level > 240 else "a single color"
            first = int(measures[worst][0].frames[np.argmax(measures[worst][1].is_blank)])
            yield Finding(
                "error" if shares[worst] >= _MANY_BLANK else "warning",
                "blank-picture",
                f"{camera} is {kind} in {shares[worst]:.0%} of the frames of {worst}, first at frame {first} "
                f"({counted(len(shares), 'episode')} affected)",
                "check lens cap, cable and exposure. "
                "Leave out these episodes with --episodes, or the camera with --cameras",
                tuple(shares),
            )


def check_frozen(survey: Survey) -> Iterator[Finding]:
    """Find cameras whose image freezes while the arm that they show moves."""
    crossed = find_crossed(survey)
    for camera, measures in _by_camera(survey).items():
        if camera in crossed:
            continue  # It shows the other arm.
        # Episodes in which the camera never changes, and those in which it stops for a while.
        whole, partly = [], {}
        for name, (images, measure) in measures.items():
            longest_s, share = _freeze(images, measure, camera, survey.readable[0].fps)
            if share == 1:
                whole.append(name)
            elif longest_s >= _LONG_FREEZE_S:
                partly[name] = longest_s
        if whole:
            text = f"{camera} never changes while the arm moves, in {counted(len(whole), 'episode')}: {some(whole)}"
            remedy = "check cable and driver. Leave out these episodes with --episodes, or the camera with --cameras"
            yield Finding("error", "frozen-camera", text, remedy, tuple(whole))
        if partly:
            worst = max(partly, key=partly.__getitem__)
            text = (
                f"{camera} freezes for {partly[worst]:.1f} s in {worst} while the arm moves "
                f"({counted(len(partly), 'episode')} affected)"
            )
            remedy = "check the camera's USB bandwidth. Leave out these episodes with --episodes"
            yield Finding("warning", "frozen-camera", text, remedy, tuple(partly))


def _freeze(images: ImageMeasure, measure: CameraMeasure, camera: str, fps: float) -> tuple[float, float]:
    """Return the longest freeze in s and the share of frozen intervals.

    Only intervals in which the arm moves count. Both are 0 if there are fewer than three of them.
    """
    sides = [i for i, side in enumerate(spec.SIDES) if WRIST_CAMERAS[side] == camera] or [0, 1]
    moving = images.travel[:, sides].max(axis=1) > _SEEN_TRAVEL_RAD
    moving &= ~measure.is_blank[1:]  # They are reported as blank.
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
    """Return the wrist cameras whose image clearly moves with their own arm."""
    return [c for c, (side, view) in _wrist_views(survey).items() if view.prefers(side) > CLEAR_DIFFERENCE]


def find_crossed(survey: Survey) -> list[str]:
    """Return the wrist cameras whose image clearly moves with the other arm.

    A camera on a resting arm may see the other arm, so its own arm must move before it is judged.
    When only one arm moves, the camera on that arm sees the larger change.
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
    # Only one arm moves: compare how much each camera sees of it.
    for i, side in enumerate(spec.SIDES):
        own, other = views[WRIST_CAMERAS[side]][1], views[WRIST_CAMERAS[spec.SIDES[1 - i]]][1]
        if own.moving_intervals[i] >= arm_views.MIN_INTERVALS and own.moving_intervals[1 - i] == 0:
            return list(views) if other.change_while_moving[i] > 2 * own.change_while_moving[i] else []
    return []


def _wrist_views(survey: Survey) -> dict[str, tuple[str, arm_views.ArmView]]:
    """Return side and view of each wrist camera that is there."""
    views = survey.arm_views
    return {camera: (side, views[camera]) for side, camera in WRIST_CAMERAS.items() if camera in views}


def check_wrists(survey: Survey) -> Iterator[Finding]:
    """Find arms or wrist cameras that have each other's name."""
    crossed, agreeing = find_crossed(survey), find_agreeing(survey)
    if crossed and set(agreeing) - set(crossed):
        text = f"both wrist cameras move with the same arm: {crossed[0]} should move with the other one"
        yield Finding(
            "error", "wrist-cameras", text, "check that the recorder opens two different cameras, by serial number"
        )
    elif crossed:
        verb = "move" if len(crossed) > 1 else "moves"
        text = f"{' and '.join(crossed)} {verb} with the other arm: arms or wrist cameras are swapped"
        yield Finding("error", "swapped-sides", text, _remedy_for_crossing(survey))
    elif survey.high_view != "unknown" and _high_camera_contradicts(survey):
        text = f"{HIGH_CAMERA} shows the right arm where the left one should be"
        flags = f"{_swap_arms_flag(survey)} {_swap_cameras_flag(survey)}"
        remedy = f"arms and wrist cameras are both swapped: {survey.convert_with(flags)}. Or --high-view is wrong"
        yield Finding("error", "swapped-sides", text, remedy)


def _swap_arms_flag(survey: Survey) -> str:
    other = "right_left" if survey.data.options.raw_arm_order == "left_right" else "left_right"
    return f"--raw-arm-order {other}"


def _swap_cameras_flag(survey: Survey) -> str:
    """Return the option that swaps the wrist cameras.

    It builds on a map that is already in use.
    """
    recorded_as = {name: recorded for recorded, name in survey.data.options.camera_map}
    left, right = WRIST_CAMERAS["left"], WRIST_CAMERAS["right"]
    return f"--camera-map {recorded_as.get(left, left)}={right} {recorded_as.get(right, right)}={left}"


def _high_camera_contradicts(survey: Survey) -> bool:
    """Return whether the high camera shows the arms on the wrong sides."""
    view = survey.arm_views.get(HIGH_CAMERA)
    if view is None:
        return False
    expected = 1 if survey.high_view == "from_robot" else -1
    return view.right_arm_side * expected < -CLEAR_DIFFERENCE


def _remedy_for_crossing(survey: Survey) -> str:
    """Return the remedy for swapped sides.

    The wrist cameras alone do not show whether arms or cameras are swapped.
    The high camera does, if its place is known.
    """
    if survey.high_view != "unknown" and HIGH_CAMERA in survey.arm_views:
        if _high_camera_contradicts(survey):
            return f"the arms are swapped: {survey.convert_with(_swap_arms_flag(survey))}"
        return f"the wrist cameras are swapped: {survey.convert_with(_swap_cameras_flag(survey))}, and fix the recorder"
    hint, condition = "", "if the arm recorded as right is the robot's left arm"
    view = survey.arm_views.get(HIGH_CAMERA)
    if view is not None and abs(view.right_arm_side) > CLEAR_DIFFERENCE:
        half = "right" if view.right_arm_side > 0 else "left"
        hint = f"in {HIGH_CAMERA} the arm recorded as right moves in the {half} half of the image. "
        condition = "If that is the robot's left arm"
    return (
        f"{hint}{condition}, {survey.convert_with(_swap_arms_flag(survey))}. Otherwise "
        f"{survey.convert_with(_swap_cameras_flag(survey))}. To let the inspection decide, run it again with "
        f"--high-view from_robot or --high-view towards_robot, depending on where {HIGH_CAMERA} looks"
    )


def _by_camera(survey: Survey) -> dict[str, dict[str, tuple[ImageMeasure, CameraMeasure]]]:
    """Return the measures by camera and episode."""
    names = dict.fromkeys(c for p in survey.images.values() for c in p.cameras)
    return {
        camera: {n: (p, p.cameras[camera]) for n, p in survey.images.items() if camera in p.cameras} for camera in names
    }
