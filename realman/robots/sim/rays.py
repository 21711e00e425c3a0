"""A renderer without OpenGL: it casts one ray per pixel.

Shading is Lambertian, in numpy. There are no textures and no shadows.
"""

import inspect

import cv2
from jaxtyping import Float
from jaxtyping import Int
import mujoco
import numpy as np

from realman.arrays import Image
from realman.robots.sim.scene import camera_in_model

_MAX_TRACED_ROWS = 240
"""Taller images are traced at half size and enlarged. This takes a quarter of the time and softens edges."""

_VISIBLE_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)
"""Geom groups that MuJoCo's own renderer shows by default."""

_MISS_RGB = np.zeros(3)


class RayRenderer:
    """Draws by casting rays. It works wherever MuJoCo works."""

    backend = "rays"

    def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
        self._model = model
        self._size = (height, width)
        scale = 2 if height > _MAX_TRACED_ROWS else 1
        self._traced = (height // scale, width // scale)
        # MuJoCo before release 4 does not have this parameter.
        self._extra = {"normal": None} if "normal" in (inspect.getdoc(mujoco.mj_multiRay) or "") else {}

    def render(self, data: mujoco.MjData, camera: str) -> Image:
        """See `realman.robots.sim.render.Renderer`."""
        camera_id = self._model.camera(camera_in_model(camera)).id
        height, width = self._traced
        rays = self._ray_directions(data, camera_id)
        geoms, distances = self._cast(data, camera_id, rays)
        points = rays * distances[:, None]
        normals = surface_normals(points.reshape(height, width, 3)).reshape(-1, 3)
        rgb = np.where(geoms[:, None] >= 0, self._albedo()[geoms] * self._light(data, points, normals), _MISS_RGB)
        image = (rgb.clip(0, 1) * 255).astype(np.uint8).reshape(height, width, 3)
        if self._traced != self._size:
            image = cv2.resize(image, self._size[::-1], interpolation=cv2.INTER_LINEAR)
        return image

    def close(self) -> None:
        """See `realman.robots.sim.render.Renderer`."""

    def _ray_directions(self, data: mujoco.MjData, camera_id: int) -> Float[np.ndarray, "n 3"]:
        """Return world directions through the pixel centers, row by row.

        They have unit length along the view axis.
        """
        height, width = self._traced
        top = np.tan(np.deg2rad(self._model.cam_fovy[camera_id]) / 2)
        y = top * (1 - (2 * np.arange(height) + 1) / height)
        x = top * ((2 * np.arange(width) + 1) / width - 1) * width / height
        grid = np.stack(np.broadcast_arrays(x[None, :], y[:, None], -1.0), axis=-1).reshape(-1, 3)
        return np.ascontiguousarray(grid @ data.cam_xmat[camera_id].reshape(3, 3).T)

    def _cast(
        self, data: mujoco.MjData, camera_id: int, rays: Float[np.ndarray, "n 3"]
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return which geom each ray hits (-1: none), and how far along."""
        geoms = np.full(len(rays), -1, np.int32)
        distances = np.zeros(len(rays))
        mujoco.mj_multiRay(
            m=self._model,
            d=data,
            pnt=data.cam_xpos[camera_id],
            vec=rays.reshape(-1),
            geomgroup=_VISIBLE_GROUPS,
            flg_static=True,
            bodyexclude=-1,
            geomid=geoms,
            dist=distances,
            nray=len(rays),
            cutoff=mujoco.mjMAXVAL,
            **self._extra,
        )
        return geoms, distances

    def _albedo(self) -> Float[np.ndarray, "g 3"]:
        """Return the color of each geom: its material's where it has one."""
        material = self._model.geom_matid
        return np.where(material[:, None] >= 0, self._model.mat_rgba[material], self._model.geom_rgba)[:, :3]

    def _light(
        self, data: mujoco.MjData, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
    ) -> Float[np.ndarray, "n 3"]:
        """Return the light on each point.

        It sums the ambient light, the camera's lamp and the scene's directional lights.
        """
        lamp = self._model.vis.headlight
        facing = -np.einsum("nc,nc->n", normals, points) / np.maximum(np.linalg.norm(points, axis=1), 1e-9)
        light = lamp.ambient + facing[:, None] * lamp.diffuse
        for direction, diffuse in zip(data.light_xdir, self._model.light_diffuse, strict=True):
            light += np.clip(-normals @ direction, 0, None)[:, None] * diffuse
        return light


def surface_normals(points: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """Return the unit normals of a surface sampled on an image grid.

    They point towards the viewer at the origin. Each difference uses the nearer of the two neighbors, so that the edge
    of an object does not mix with the background.
    """
    across = _nearer_difference(points, axis=1)
    down = _nearer_difference(points, axis=0)
    normals = np.cross(down, across)
    normals *= -np.sign(np.einsum("hwc,hwc->hw", normals, points))[..., None]
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)


def _nearer_difference(points: Float[np.ndarray, "h w 3"], axis: int) -> Float[np.ndarray, "h w 3"]:
    step = np.diff(points, axis=axis)
    last, first = np.take(step, [-1], axis), np.take(step, [0], axis)
    ahead, behind = np.concatenate([step, last], axis), np.concatenate([first, step], axis)
    closer = (ahead**2).sum(-1) <= (behind**2).sum(-1)
    return np.where(closer[..., None], ahead, behind)
