"""A `street` scene: a road between rows of houses, with people, vehicles, trees and poles.

Every image is a function of (seed, split, index) alone: the same seed gives the same bytes, in any
order and on any number of processes. It is painted from far to near; haze, light, texture, blur and
noise follow.
"""

from functools import partial

import cv2
import numpy as np

from .street_canvas import NEAR, Canvas
from .street_labels import ID
from .street_objects import (
    draw_cycle,
    draw_facade,
    draw_person,
    draw_pole,
    draw_tree,
    draw_vehicle,
)

SPLITS = ('train', 'val', 'test')
_FAR = 90.0
# How strongly the texture shows on a class; every other class has 0.10.
_ROUGHNESS = dict(vegetation=0.45, terrain=0.30, sky=0.03, building=0.14, road=0.12, fence=0.25)


def render(
    seed: int, split: str, index: int, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 BGR and Cityscapes instance ids (H, W) int32 of one scene."""
    scene = Scene(np.random.default_rng([seed, SPLITS.index(split), index]), width, height)
    return scene.image, scene.ids


class Scene:
    """One street.

    Args:
        rng: all random numbers of the scene come from it.
        width: pixels.
        height: pixels.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        ids: (H, W) int32 Cityscapes instance ids.
    """

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng, self.canvas = rng, Canvas(rng, width, height)
        self.paint()
        self.image, self.ids = self.develop(), self.canvas.ids

    def paint(self) -> None:
        rng, canvas = self.rng, self.canvas
        self.paint_sky()
        self.road_half = rng.uniform(3.2, 6.5)
        self.walk_half = self.road_half + rng.uniform(1.6, 4.0)
        self.facade_line = self.walk_half + rng.uniform(0.2, 4.0)
        self.paint_ground()
        things = []
        for side in -1, 1:
            things += self.houses(side)
            things += self.furniture(side)
        things += self.traffic()
        for _z, draw in sorted(things, key=lambda thing: -thing[0]):
            draw()
        if rng.random() < 0.6:  # the bonnet of the car that carries the camera
            half = rng.uniform(0.25, 0.45) * canvas.width
            up = rng.uniform(0.04, 0.11) * canvas.height
            centre = (int(canvas.width / 2), int(canvas.height + up))
            for target, value in (
                (canvas.image, tuple(canvas.random_colour(10, 90))),
                (canvas.ids, ID['ego']),
            ):
                cv2.ellipse(target, centre, (int(half), int(2 * up)), 0, 0, 360, value, -1)

    def paint_sky(self) -> None:
        canvas = self.canvas
        top = np.array(
            [self.rng.uniform(150, 250), self.rng.uniform(120, 200), self.rng.uniform(90, 190)]
        )
        if self.rng.random() < 0.4:  # overcast
            top[:] = self.rng.uniform(130, 230)
        ramp = np.linspace(0, 1, canvas.height)[:, None, None] ** 0.7
        sky = (1 - ramp) * top + ramp * canvas.haze_colour
        clouds = canvas.noise(4, 5)[..., None] * self.rng.uniform(0, 45)
        canvas.image[:] = np.clip(sky + clouds, 0, 255).astype(np.uint8)
        canvas.ids[:] = ID['sky']

    def paint_ground(self) -> None:
        rng, canvas = self.rng, self.canvas
        greens = np.array([rng.uniform(20, 80), rng.uniform(60, 130), rng.uniform(40, 120)])
        grey = canvas.random_colour(60, 140, 10)
        bands = [
            ('terrain', 200.0, greens),
            ('sidewalk', self.walk_half, canvas.random_colour(80, 170, 15)),
            ('road', self.road_half, grey),
        ]
        left = rng.choice(['sidewalk', 'terrain'], p=[0.8, 0.2])
        for name, half, colour in bands:
            for side in -1, 1:
                label = left if name == 'sidewalk' and side < 0 else name
                paint = greens if label == 'terrain' else colour
                for z0, z1 in ((14, 2 * _FAR), (5, 14), (NEAR, 5)):  # haze in three steps
                    strip = [[0, 0, z0], [side * half, 0, z0], [side * half, 0, z1], [0, 0, z1]]
                    canvas.polygons(
                        np.array([strip]), paint, ID[label], z0, rng.uniform(0.95, 1.05)
                    )
        for x in (-self.road_half, self.road_half):  # the kerb, part of the sidewalk
            kerb = [[x, 0, NEAR], [1.04 * x, 0, NEAR], [1.04 * x, 0, _FAR], [x, 0, _FAR]]
            canvas.polygons(np.array([kerb]), grey, ID['sidewalk'], 10, 1.3)
        for lane in rng.uniform(-0.5, 0.5, rng.integers(1, 3)) * self.road_half:
            marks = [
                [[lane, 0, z], [lane + 0.15, 0, z], [lane + 0.15, 0, z + 2.5], [lane, 0, z + 2.5]]
                for z in np.arange(rng.uniform(2, 4), 60, rng.uniform(5, 8))
            ]
            canvas.polygons(np.array(marks), np.full(3, 215.0), ID['road'], 10)
        for _ in range(rng.integers(0, 6)):  # shadows and patches on the road
            x, z = rng.uniform(-self.road_half, self.road_half), rng.uniform(3, 40)
            u, v = canvas.project(np.array([x, 0, z]))
            axes = (
                int(rng.uniform(0.5, 2.5) * canvas.focal / z),
                max(1, int(0.5 * canvas.focal / z**1.5)),
            )
            patch = np.zeros(canvas.ids.shape, np.uint8)
            cv2.ellipse(patch, (int(u), int(v)), axes, 0, 0, 360, 1, -1)
            dark = (patch > 0) & (canvas.ids == ID['road'])
            canvas.image[dark] = (canvas.image[dark] * rng.uniform(0.5, 0.85)).astype(np.uint8)

    def houses(self, side: int) -> list:
        """A row of facades, walls, fences and hedges along one side of the street."""
        rng, canvas, facades, z = self.rng, self.canvas, [], NEAR
        while z < _FAR:
            length = rng.uniform(5, 18)
            kind = rng.choice(['building', 'building', 'building', 'wall', 'fence', 'trees', 'gap'])
            x = side * (self.facade_line + rng.uniform(0, 1.5))
            draw = partial(draw_facade, canvas, kind, x, z, z + length)
            facades.append((z + length, draw))
            z += length + rng.choice([0, 0, rng.uniform(0, 6)])
        return facades

    def furniture(self, side: int) -> list:
        """Trees, poles, lights, signs and pedestrians on one side."""
        rng, canvas, things = self.rng, self.canvas, []
        for _ in range(rng.integers(1, 4)):
            x, z = side * rng.uniform(self.road_half + 0.8, self.walk_half + 1), rng.uniform(5, 60)
            things.append((z, partial(draw_tree, canvas, x, z, rng.uniform(3, 9))))
        for _ in range(rng.integers(1, 5)):
            x, z = side * rng.uniform(self.road_half + 0.2, self.road_half + 1), rng.uniform(4, 45)
            kind = rng.choice(['lamp', 'light', 'sign', 'sign'])
            things.append((z, partial(draw_pole, canvas, x, z, kind)))
        for _ in range(rng.integers(1, 7)):
            on_walk = rng.random() < 0.85
            x = (
                side * rng.uniform(self.road_half + 0.4, self.walk_half)
                if on_walk
                else rng.uniform(-1, 1) * self.road_half
            )
            z = rng.uniform(3.5, 35)
            things.append((z, partial(draw_person, canvas, x, z)))
        return things

    def traffic(self) -> list:
        """Vehicles and cycles, driving or parked, none inside another."""
        rng, canvas, things = self.rng, self.canvas, []
        kinds = ['car'] * 8 + ['truck', 'bus', 'train', 'cycle', 'cycle', 'cycle']
        taken: list[tuple[float, float]] = []
        for _ in range(rng.integers(3, 11)):
            kind = rng.choice(kinds)
            parked = rng.random() < 0.5 and kind in ('car', 'cycle', 'truck')
            reach = self.road_half - 1.0
            x = rng.choice([-1, 1]) * (reach + 0.2) if parked else rng.uniform(-0.8, 0.8) * reach
            z = rng.uniform(6, 18 if rng.random() < 0.4 else 60)
            if any(abs(x - a) < 2.2 and abs(z - b) < 5 for a, b in taken):
                continue
            taken.append((x, z))
            draw = (
                partial(draw_cycle, canvas, x, z)
                if kind == 'cycle'
                else partial(draw_vehicle, canvas, kind, x, z)
            )
            things.append((z, draw))
        return things

    def develop(self) -> np.ndarray:
        """The painted canvas as a photograph: texture, light, blur and noise."""
        rng, canvas = self.rng, self.canvas
        roughness = np.full(256, 0.10, np.float32)
        for name, value in _ROUGHNESS.items():
            roughness[ID[name]] = value
        image = canvas.image.astype(np.float32)
        classes = np.where(canvas.ids >= 1000, canvas.ids // 1000, canvas.ids).astype(np.uint8)
        image *= (1 + roughness[classes] * canvas.noise(24, 4))[..., None]
        light = 1 + rng.uniform(0, 0.3) * canvas.noise(2, 1)  # clouds, lamps, a low sun
        image *= light[..., None] * rng.uniform(0.55, 1.15)
        image *= rng.uniform(0.9, 1.1, 3).astype(np.float32)  # white balance
        image = cv2.GaussianBlur(image, (0, 0), canvas.width / 512 * rng.uniform(0.3, 0.9))
        image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 9))
        return np.clip(image, 0, 255).astype(np.uint8)
