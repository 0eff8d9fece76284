"""The canvas of a `street` scene: a pinhole camera, haze and light, and what is drawn with them.

Lengths in metres, X to the right, Y up from the ground, Z forward; image coordinates in pixels.
"""

import cv2
import numpy as np

from .street_labels import ID

NEAR = 1.2  # nothing is drawn closer to the camera


class Canvas:
    """An image and its instance ids, painted together from far to near.

    Camera, haze and light are drawn from `rng` first.

    Args:
        rng: all random numbers of the scene come from it, in the order of the drawing.
        width: pixels.
        height: pixels.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        ids: (H, W) int32 Cityscapes instance ids.
    """

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.focal = width * rng.uniform(0.75, 1.0)
        self.centre = width * rng.uniform(0.38, 0.62)
        self.horizon = height * rng.uniform(0.36, 0.52)
        self.camera_height = rng.uniform(1.2, 1.8)
        self.haze_colour = np.array([1, 1, 1]) * rng.uniform(140, 225) + rng.uniform(-15, 15, 3)
        # metres after which haze has taken 63 % of a colour
        self.visibility = rng.uniform(40, 220)
        self.lit_side = rng.choice([-1, 1])
        self.image = np.zeros((height, width, 3), np.uint8)
        self.ids = np.zeros((height, width), np.int32)
        self.counts = dict.fromkeys(ID, 0)  # instances so far

    def project(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) X, Y, Z -> (..., 2) x, y as int32."""
        points = np.asarray(points, float)
        z = np.maximum(points[..., 2], NEAR)
        x = self.centre + self.focal * points[..., 0] / z
        y = self.horizon - self.focal * (points[..., 1] - self.camera_height) / z
        xy = np.stack([x, y], -1)
        return np.clip(xy, -8 * self.width, 8 * self.width).astype(np.int32)

    def tint(self, colour: np.ndarray, z: float, shade: float = 1.0) -> tuple:
        """A BGR colour as seen through the haze at depth z."""
        mix = 1 - np.exp(-max(z, 0) / self.visibility)
        return tuple(
            float(v) for v in np.clip((1 - mix) * shade * colour + mix * self.haze_colour, 0, 255)
        )

    def polygons(
        self, corners: np.ndarray, colour, ident: int, z: float, shade: float = 1.0
    ) -> None:
        """Fill polygons given by (K, P, 3) world corners."""
        self.fill(self.project(corners), self.tint(colour, z, shade), ident)

    def fill(self, shapes, colour: tuple, ident: int) -> None:
        """Fill polygons given by (K, P, 2) image coordinates."""
        cv2.fillPoly(self.image, list(shapes), colour)
        cv2.fillPoly(self.ids, list(shapes), ident)

    def ellipse(self, x, y, z, rx, ry, colour, ident, shade=1.0, angle=0.0) -> None:
        """An ellipse that faces the camera, centre and radii in metres."""
        (u, v), scale = self.project(np.array([x, y, z])), self.focal / z
        axes = (max(1, round(rx * scale)), max(1, round(ry * scale)))
        if abs(int(u)) > 4 * self.width:
            return
        for target, value in ((self.image, self.tint(colour, z, shade)), (self.ids, ident)):
            cv2.ellipse(target, (int(u), int(v)), axes, angle, 0, 360, value, -1)

    def stroke(self, points, z, width, colour, ident, shade=1.0, closed=False) -> None:
        """A line of `width` metres through (P, 2) X, Y points at depth z."""
        line = self.project(np.column_stack([points, np.full(len(points), z)]))[None]
        thickness = int(np.clip(round(width * self.focal / z), 1, 200))
        cv2.polylines(self.image, line, closed, self.tint(colour, z, shade), thickness)
        cv2.polylines(self.ids, line, closed, ident, thickness)

    def box(self, x, y, z, colour, ident) -> None:
        """The visible faces of a box; x, y, z are its (low, high)."""
        (x0, x1), (y0, y1), (z0, z1) = x, y, z
        for side, edge, visible in ((1, x0, x0 > 0), (-1, x1, x1 < 0)):
            if visible:
                face = [[edge, y0, z0], [edge, y0, z1], [edge, y1, z1], [edge, y1, z0]]
                self.polygons(
                    np.array([face]), colour, ident, z0, 1.0 if side == self.lit_side else 0.6
                )
        if y1 < self.camera_height:
            top = [[x0, y1, z0], [x1, y1, z0], [x1, y1, z1], [x0, y1, z1]]
            self.polygons(np.array([top]), colour, ident, z0, 1.15)
        face = [[x0, y0, z0], [x1, y0, z0], [x1, y1, z0], [x0, y1, z0]]
        self.polygons(np.array([face]), colour, ident, z0, 0.85)

    def random_colour(self, low=20, high=235, spread=40) -> np.ndarray:
        """A random BGR colour: a grey with a cast, as most things in a street are."""
        return np.clip(self.rng.uniform(low, high) + self.rng.uniform(-spread, spread, 3), 0, 255)

    def new_instance(self, name: str) -> int:
        """The next free instance id of a class, 1000 * class id + number."""
        self.counts[name] += 1
        return ID[name] * 1000 + self.counts[name] - 1

    def noise(self, cells: int, octaves: int) -> np.ndarray:
        """Smooth noise (H, W) in about -1..1, the coarsest octave `cells` cells high."""
        total = np.zeros((self.height, self.width), np.float32)
        for octave in range(octaves):
            rows = min(cells << octave, self.height)
            columns = min(2 * cells << octave, self.width)
            grid = self.rng.standard_normal((rows, columns), np.float32) / (octave + 1)
            total += cv2.resize(grid, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        return total / 2
