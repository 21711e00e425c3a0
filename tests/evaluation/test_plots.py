from matplotlib.image import imread
import numpy as np

from realman import spec
from realman.evaluation import plots


def ramp(slope: float) -> np.ndarray:
    return slope * np.arange(100)[:, None] * np.linspace(0.5, 1, 14)


def draw():
    return plots.plot_episode(
        ramp(0.01), ramp(0.011), ramp(0.0), fps=50.0, inference_frames=(0, 25, 50, 75), title="episode_3 | debug"
    )


def test_fourteen_axes_name_every_number_with_its_unit_and_put_the_left_arm_left():
    axes = draw().get_axes()
    assert len(axes) == 14
    labels = [ax.get_ylabel().replace("\n", " ") for ax in axes]
    assert [label.partition(" [")[0] for label in labels[::2]] == [
        *(name.replace("_", " ") for name in spec.ARM_JOINTS),
        "gripper",
    ]
    assert labels[0] == "waist [deg]"
    assert labels[13] == "gripper [0..1, 1 = open]"
    assert axes[0].get_title() == "left arm"
    assert axes[1].get_title() == "right arm"


def test_joints_are_drawn_in_degrees_of_the_right_arm_over_seconds():
    axes = draw().get_axes()
    recorded = {line.get_label(): line for line in axes[1].get_lines()}["recorded"]
    np.testing.assert_allclose(recorded.get_ydata(), np.rad2deg(ramp(0.01)[:, 0]))
    np.testing.assert_allclose(recorded.get_xdata(), np.arange(100) / 50)
    left_gripper = {line.get_label(): line for line in axes[12].get_lines()}["predicted"]
    np.testing.assert_allclose(left_gripper.get_ydata(), ramp(0.011)[:, 13])


def test_each_inference_is_marked():
    marks = [line.get_xdata()[0] for line in draw().get_axes()[5].get_lines() if len(line.get_xdata()) == 2]
    assert marks == [0.0, 0.5, 1.0, 1.5]


def test_a_joint_at_rest_is_not_magnified():
    flat = np.zeros((100, 14)) + 1e-6 * np.random.default_rng(0).standard_normal((100, 14))
    axes = plots.plot_episode(flat, flat, flat, fps=50.0, inference_frames=(0,), title="still").get_axes()
    assert np.ptp(axes[0].get_ylim()) >= 4.0


def test_the_plot_is_a_readable_png(tmp_path):
    path = tmp_path / "plot.png"
    plots.save(draw(), path)
    height, width = imread(path).shape[:2]
    assert (width, height) == (1560, 1800)
