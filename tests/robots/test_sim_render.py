"""Camera images drawn by OpenGL, where there is one, and by rays."""

import os

import numpy as np
import pytest

from realman import spec
from realman.errors import RobotError
from realman.robots.sim import render
from realman.robots.sim import task
from realman.robots.sim.rays import RayRenderer
from realman.robots.sim.rays import surface_normals
from realman.robots.sim.scene import Scene

HEIGHT, WIDTH = 240, 320


@pytest.fixture(scope="module")
def scene():
    scene = Scene()
    layout = task.draw_layout(np.random.default_rng(1))
    scene.reset(layout)
    return scene


def cube_mask(image, scene):
    """Pixels with the hue of the cube in any light."""
    rgb = image.astype(float) / np.maximum(image.max(axis=-1, keepdims=True), 1)
    color = scene.model.mat("cube").rgba[:3]
    return np.abs(rgb - color / color.max()).max(axis=-1) < 0.1


@pytest.mark.parametrize("camera", spec.CAMERAS)
def test_rays_give_an_rgb_image_with_contrast(scene, camera):
    image = RayRenderer(scene.model, HEIGHT, WIDTH).render(scene.data, camera)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    assert image.std() > 15


def test_rays_and_opengl_see_the_cube_at_the_same_place(scene, monkeypatch):
    monkeypatch.delenv(render.BACKEND_ENV, raising=False)
    renderer = render.open_renderer(scene.model, HEIGHT, WIDTH)
    if renderer.backend == "rays":
        pytest.skip("no OpenGL here; install libegl1 and libgl1-mesa-dri to compare")
    rays = RayRenderer(scene.model, HEIGHT, WIDTH)
    for camera in ("cam_high", "cam_low", "cam_right_wrist"):
        by_gl = cube_mask(renderer.render(scene.data, camera), scene)
        by_rays = cube_mask(rays.render(scene.data, camera), scene)
        assert by_gl.sum() > 100, camera
        assert (by_gl & by_rays).sum() / (by_gl | by_rays).sum() > 0.8, camera
    renderer.close()
    renderer.close()


def test_rays_and_opengl_agree_in_brightness(scene, monkeypatch):
    monkeypatch.delenv(render.BACKEND_ENV, raising=False)
    renderer = render.open_renderer(scene.model, HEIGHT, WIDTH)
    if renderer.backend == "rays":
        pytest.skip("no OpenGL here; install libegl1 and libgl1-mesa-dri to compare")
    by_gl = renderer.render(scene.data, "cam_high").astype(float)
    renderer.close()
    by_rays = RayRenderer(scene.model, HEIGHT, WIDTH).render(scene.data, "cam_high").astype(float)
    assert np.median(np.abs(by_gl - by_rays)) < 12


def test_shadows_darken_the_image(scene, monkeypatch):
    monkeypatch.delenv(render.BACKEND_ENV, raising=False)
    images = []
    for shadows in (False, True):
        renderer = render.open_renderer(scene.model, HEIGHT, WIDTH, shadows=shadows)
        if renderer.backend == "rays":
            pytest.skip("no OpenGL here, and rays throw no shadows")
        images.append(renderer.render(scene.data, "cam_high").astype(int))
        renderer.close()
    lit, shaded = images
    darker = ((lit - shaded).max(axis=-1) > 20).mean()
    brighter = ((shaded - lit).max(axis=-1) > 20).mean()
    assert darker > 0.02, "share of pixels"
    assert brighter < darker / 20, "edges, which the second pass draws a little differently"


def test_tall_image_is_traced_at_half_size_and_keeps_its_shape(scene):
    image = RayRenderer(scene.model, 480, 640).render(scene.data, "cam_high")
    assert image.shape == (480, 640, 3)


def test_failed_backends_leave_no_trace_for_child_processes(scene, monkeypatch):
    monkeypatch.delenv(render.BACKEND_ENV, raising=False)
    names = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    for name in names:
        monkeypatch.delenv(name, raising=False)

    def refuse(*_):
        raise OSError("no such library")

    monkeypatch.setattr(render.mujoco, "MjrContext", refuse)
    assert render.open_renderer(scene.model, HEIGHT, WIDTH).backend == "rays"
    assert not any(name in os.environ for name in names)


def test_unknown_backend_is_refused_by_name(scene, monkeypatch):
    monkeypatch.setenv(render.BACKEND_ENV, "vulkan")
    with pytest.raises(RobotError, match="unknown renderer 'vulkan', expected one of egl, osmesa, rays"):
        render.open_renderer(scene.model, HEIGHT, WIDTH)


def test_forced_backend_that_is_missing_says_so(scene, monkeypatch):
    def refuse(*_):
        raise render.GlContextError("no such library")

    monkeypatch.setattr(render, "_open_contexts", refuse)
    monkeypatch.setenv(render.BACKEND_ENV, "osmesa")
    with pytest.raises(RobotError, match=r"'osmesa' cannot draw here \(no such library\)"):
        render.open_renderer(scene.model, HEIGHT, WIDTH)


def test_without_any_opengl_rays_are_chosen_and_announced(scene, monkeypatch, caplog):
    def refuse(*_):
        raise render.GlContextError("no such library")

    monkeypatch.setattr(render, "_open_contexts", refuse)
    monkeypatch.delenv(render.BACKEND_ENV, raising=False)
    assert render.open_renderer(scene.model, HEIGHT, WIDTH).backend == "rays"
    assert "casting rays" in caplog.text


def test_normals_of_a_plane_point_to_the_viewer():
    y, x = np.mgrid[-1:1:20j, -1:1:30j]
    plane = np.stack([x, y, -3.0 + 0.5 * x], axis=-1)
    expected = np.array([-0.5, 0.0, 1.0]) / np.hypot(0.5, 1.0)
    np.testing.assert_allclose(surface_normals(plane), np.broadcast_to(expected, plane.shape), atol=1e-9)
