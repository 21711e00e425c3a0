"""Camera images of a scene, drawn by OpenGL or ray casting.

OpenGL needs no display here. The first that works is used: EGL, OSMesa, rays. `REALMAN_RENDER=egl|osmesa|rays` forces
one.
"""

from collections.abc import Iterator
import contextlib
import logging
import os
import sys
from typing import Any, Protocol, runtime_checkable

import mujoco
import numpy as np

from realman.arrays import Image
from realman.errors import RobotError
from realman.robots.sim.rays import RayRenderer
from realman.robots.sim.scene import camera_in_model

logger = logging.getLogger(__name__)

BACKEND_ENV = "REALMAN_RENDER"
BACKENDS = ("egl", "osmesa", "rays")

_MAX_GEOMS = 200
_OFF_FLAGS = (mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_SKYBOX, mujoco.mjtRndFlag.mjRND_HAZE)
"""Effects that this scene does not have. Each would cost a pass or a test."""


@runtime_checkable
class Renderer(Protocol):
    """Draws one model at one size.

    It holds a graphics context. Use it only in the thread that opened it, and close it.
    """

    backend: str

    def render(self, data: mujoco.MjData, camera: str) -> Image:
        """Draw what a camera of `realman.spec.CAMERAS` sees.

        Returns:
            A new RGB array.
        """
        ...

    def close(self) -> None:
        """Release the graphics context. Safe to call twice."""
        ...


class GlContextError(Exception):
    """This OpenGL backend cannot be used on this machine."""


class GlRenderer:
    """Draws with OpenGL into an offscreen buffer."""

    def __init__(self, model: mujoco.MjModel, height: int, width: int, *, backend: str, shadows: bool) -> None:
        """Open a graphics context.

        Raises:
            GlContextError: This backend cannot be used here.
        """
        self.backend = backend
        # Enlarge the model's offscreen buffer before a context is opened for it.
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        self._gl, self._context = _open_contexts(model, backend, width, height)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        for flag in _OFF_FLAGS:
            self._scene.flags[int(flag)] = 0
        self._scene.flags[int(mujoco.mjtRndFlag.mjRND_SHADOW)] = shadows
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._model = model
        self._viewport = mujoco.MjrRect(0, 0, width, height)

    def render(self, data: mujoco.MjData, camera: str) -> Image:
        """See `Renderer`."""
        self._gl.make_current()
        self._camera.fixedcamid = self._model.camera(camera_in_model(camera)).id
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        image = np.empty((self._viewport.height, self._viewport.width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._viewport, self._context)
        return np.ascontiguousarray(image[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        """See `Renderer`."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None


def open_renderer(model: mujoco.MjModel, height: int, width: int, *, shadows: bool = False) -> Renderer:
    """Open the best renderer of this machine, or the one in `REALMAN_RENDER`.

    Args:
        model: The scene. Its offscreen buffer grows to the image size if needed.
        height: Rows of an image, px.
        width: Columns of an image, px.
        shadows: Draw shadows. They are about four times slower on a software rasterizer. The ray caster draws none.

    Raises:
        RobotError: The forced backend is unknown or cannot be used here.
    """
    forced = os.environ.get(BACKEND_ENV, "").lower()
    if forced and forced not in BACKENDS:
        raise RobotError(f"{BACKEND_ENV}: unknown renderer '{forced}', expected one of {', '.join(BACKENDS)}")
    # Rays always work, so they end the search.
    for backend in [forced] if forced else BACKENDS:
        if backend == "rays":
            break
        try:
            renderer = GlRenderer(model, height, width, backend=backend, shadows=shadows)
        except GlContextError as e:
            if forced:
                remedy = "Install libegl1 or libosmesa6, or set 'rays'"
                raise RobotError(f"{BACKEND_ENV}: '{backend}' cannot draw here ({e}). {remedy}") from e
            logger.info("%s cannot be used here (%s)", backend, e)
        else:
            logger.info("camera images are drawn by %s", backend)
            return renderer
    # A fallback is worth a warning. Rays that you chose yourself are not.
    level = logging.INFO if forced else logging.WARNING
    logger.log(level, "camera images are drawn by casting rays: no shadows, several times slower than OpenGL")
    return RayRenderer(model, height, width)


def _open_contexts(model: mujoco.MjModel, backend: str, width: int, height: int) -> tuple[Any, mujoco.MjrContext]:
    """Open the platform's graphics context, and MuJoCo's context in it."""
    logging.getLogger("OpenGL.acceleratesupport").setLevel(logging.WARNING)
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        else:
            from mujoco.osmesa import GLContext
        gl = GLContext(width, height)
        gl.make_current()
        with _environment_variable("MUJOCO_GL", backend):  # read by MuJoCo's loader of GL functions
            return gl, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    except Exception as e:  # an unusable library raises any of half a dozen types, PyOpenGL's own included
        _forget_pyopengl()
        raise GlContextError(str(e) or type(e).__name__) from e


def _forget_pyopengl() -> None:
    """Let PyOpenGL choose its platform again.

    It keeps the platform of its first import, even one that cannot be used.
    """
    os.environ.pop("PYOPENGL_PLATFORM", None)  # set by mujoco.egl and mujoco.osmesa, inherited by child processes
    for name in [name for name in sys.modules if name.partition(".")[0] == "OpenGL"]:
        del sys.modules[name]


@contextlib.contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    previous = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if previous is None:
            del os.environ[name]
        else:
            os.environ[name] = previous
