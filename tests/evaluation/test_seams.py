"""The seam simulator: the client's own players on a recording, with a delay in ticks."""

import jax.numpy as jnp
import numpy as np
import pytest

from openpi.models import real_time_chunking
from realman import spec
from realman.evaluation import plots
from realman.evaluation import seams
from realman.runtime.client import LeftOver

FPS = 50.0
T = np.arange(300)[:, None] / FPS
RECORDED = 0.5 * np.sin(T + np.arange(14))
RECORDED[:, list(spec.GRIPPER_DIMS)] = 0.5
LARGEST_STEP_DEG = float(np.rad2deg(np.abs(np.diff(RECORDED[:, list(spec.JOINT_DIMS)], axis=0)).max()))


def exact(frame: int, left_over: LeftOver | None = None) -> np.ndarray:
    return RECORDED[np.minimum(frame + np.arange(50), len(RECORDED) - 1)]


@pytest.mark.parametrize("execution", seams.EXECUTIONS)
@pytest.mark.parametrize("delay_steps", [0, 3, 10])
def test_a_perfect_policy_is_played_as_recorded_whatever_the_delay(execution, delay_steps):
    played = seams.play(exact, len(RECORDED), fps=FPS, execution=execution, delay_steps=delay_steps)
    moving = played.targets[~played.is_held] if execution == "sync" else played.targets
    np.testing.assert_allclose(moving, RECORDED, atol=1e-12)
    assert played.figures()["seam_jump_deg"]["max"] <= LARGEST_STEP_DEG + 1e-9


def test_sync_stands_still_for_each_delay_and_the_others_never():
    played = {
        p.execution: p.figures()
        for p in seams.compare(seams.wandering_copy(RECORDED, 50), 300, fps=FPS, delays_ms=(200.0,))
    }
    assert played["sync"]["stalls"] == 11
    assert played["sync"]["held_s"] == pytest.approx(11 * 0.2)
    assert played["sync"]["stalls_per_min"] == pytest.approx(11 / (6 + 2.2) * 60)
    assert played["async"]["stalls"] == played["blend"]["stalls"] == played["rtc"]["stalls"] == 0


def test_blending_makes_seams_smaller_and_motion_smoother():
    figures = {
        p.execution: p.figures()
        for p in seams.compare(seams.wandering_copy(RECORDED, 50), 300, fps=FPS, delays_ms=(100.0,))
    }
    assert figures["blend"]["seam_jump_deg"]["max"] < 0.6 * figures["async"]["seam_jump_deg"]["max"]
    assert figures["blend"]["jerk_rms_deg_s3"] < 0.6 * figures["async"]["jerk_rms_deg_s3"]
    assert figures["sync"]["jerk_rms_deg_s3"] > figures["blend"]["jerk_rms_deg_s3"]


@pytest.mark.parametrize("delay_ms", [0.0, 50.0, 100.0, 200.0])
def test_real_time_chunking_never_stalls_and_its_seams_are_no_seams(delay_ms):
    figures = {
        p.execution: p.figures()
        for p in seams.compare(seams.wandering_copy(RECORDED, 50), 300, fps=FPS, delays_ms=(delay_ms,))
    }
    rtc, plain = figures["rtc"], figures["async"]
    assert (rtc["stalls"], rtc["held_s"]) == (0, 0)
    assert (plain["stalls"], plain["held_s"]) == (0, 0)
    assert rtc["seam_jump_deg"]["max"] < 0.6 * plain["seam_jump_deg"]["p50"]
    assert rtc["jerk_rms_deg_s3"] < 0.6 * plain["jerk_rms_deg_s3"]


def test_the_stand_in_weighs_a_left_over_as_the_model_does():
    for delay, num_left in ((0, 25), (5, 25), (10, 10), (3, 40)):
        model_mask = real_time_chunking.soft_mask(jnp.int32(delay), jnp.int32(num_left), 50, jnp.int32(0))
        np.testing.assert_allclose(seams.left_over_weights(delay, num_left), model_mask[:num_left], atol=1e-6)


def test_each_frame_is_predicted_once_for_all_modes_and_delays():
    asked: list[tuple[int, LeftOver | None]] = []

    def counting(frame: int, left_over: LeftOver | None) -> np.ndarray:
        asked.append((frame, left_over))
        return exact(frame)

    results = list(seams.compare(counting, 300, fps=FPS, delays_ms=(0.0, 50.0, 200.0)))
    assert len(results) == 12
    assert sorted(frame for frame, left_over in asked if left_over is None) == list(range(0, 300, 25))
    # Real-time chunking asks with what is left: each time, and each delay, another question.
    assert sorted(frame for frame, left_over in asked if left_over) == sorted([*range(25, 300, 25)] * 3)


def test_a_jump_and_a_stall_are_measured_in_degrees_and_seconds():
    targets = np.zeros((10, 14))
    targets[5:, 3] = np.deg2rad(2.0)
    held = np.zeros(10, bool)
    held[2:4] = held[7] = True
    figures = seams.Played("async", 2, FPS, targets, (5,), held).figures()
    assert figures["seam_jump_deg"]["max"] == pytest.approx(2.0)
    assert figures["other_step_deg"]["p95"] == 0.0
    assert (figures["stalls"], figures["held_s"]) == (2, pytest.approx(0.06))
    assert figures["delay_ms"] == pytest.approx(40.0)


def test_the_plot_names_the_modes_and_shows_every_number(tmp_path):
    played = {p.execution: p.targets for p in seams.compare(exact, 100, fps=FPS, delays_ms=(100.0,))}
    figure = plots.plot_executions(RECORDED[:100], played, fps=FPS, title="episode_0, 100 ms")
    axes = figure.get_axes()
    assert len(axes) == 14
    assert [line.get_label() for line in axes[3].get_lines()] == ["recorded", *seams.EXECUTIONS]
    np.testing.assert_allclose(axes[1].get_lines()[2].get_ydata(), np.rad2deg(RECORDED[:100, 0]))
    speeds = plots.plot_executions(RECORDED[:100], played, fps=FPS, title="speeds", speeds=True).get_axes()
    np.testing.assert_allclose(speeds[1].get_lines()[2].get_ydata(), np.diff(np.rad2deg(RECORDED[:100, 0])) * FPS)
    assert "deg/s" in speeds[0].get_ylabel()
    path = tmp_path / "seams.png"
    plots.save(figure, path)
    assert path.stat().st_size > 10_000
