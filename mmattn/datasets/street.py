"""`street`: generated street scenes in the Cityscapes layout and as COCO JSON.

A scene is a small 3-D world (a road between rows of houses, people, vehicles, trees, poles) seen by
a pinhole camera and painted from far to near, so that perspective, occlusion and scale are those
of a photograph; haze, light, texture, blur and noise follow. Every image is a function of (seed,
split, index) alone: same seed, same bytes, in whatever order and on however many processes it is
made.

Lengths in metres, X to the right, Y up from the ground, Z forward; image coordinates in pixels.
"""

import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from mmattn.errors import UsageError
from mmattn.progress import track

SPLITS = ('train', 'val', 'test')
# Names and ids are those of the Cityscapes label table; things get instance ids 1000 * id + k.
ID = dict(
    ego=1, road=7, sidewalk=8, building=11, wall=12, fence=13, pole=17, light=19, sign=20,
    vegetation=21, terrain=22, sky=23, person=24, rider=25, car=26, truck=27, bus=28, train=31,
    motorcycle=32, bicycle=33,
)  # fmt: skip
TRAIN_ID = np.full(256, 255, np.uint8)
TRAIN_ID[[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]] = range(19)
THINGS = ('person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle')

_NEAR = 1.2  # nothing is drawn closer to the camera
_FAR = 90.0
_MIN_AREA = 12  # pixels; a smaller visible part of a thing is no COCO annotation
# How strongly the texture shows on a class; everything not named has 0.10.
_ROUGHNESS = dict(vegetation=0.45, terrain=0.30, sky=0.03, building=0.14, road=0.12, fence=0.25)


class Scene:
    """One street: `image` (H, W, 3) uint8 BGR, `ids` (H, W) int32 Cityscapes instance ids."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng, self.width, self.height = rng, width, height
        self.focal = width * rng.uniform(0.75, 1.0)
        self.centre = width * rng.uniform(0.38, 0.62)
        self.horizon = height * rng.uniform(0.36, 0.52)
        self.eye = rng.uniform(1.2, 1.8)
        self.haze = np.array([1, 1, 1]) * rng.uniform(140, 225) + rng.uniform(-15, 15, 3)
        self.sight = rng.uniform(40, 220)  # metres after which haze has taken 63 % of a colour
        self.sun = rng.choice([-1, 1])  # the side that is lit
        self.canvas = np.zeros((height, width, 3), np.uint8)
        self.ids = np.zeros((height, width), np.int32)
        self.count = dict.fromkeys(ID, 0)
        self.paint()
        self.image = self.develop()

    # ---- drawing -------------------------------------------------------------------------------
    def project(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) X, Y, Z -> (..., 2) x, y as int32."""
        points = np.asarray(points, float)
        z = np.maximum(points[..., 2], _NEAR)
        x = self.centre + self.focal * points[..., 0] / z
        y = self.horizon - self.focal * (points[..., 1] - self.eye) / z
        xy = np.stack([x, y], -1)
        return np.clip(xy, -8 * self.width, 8 * self.width).astype(np.int32)

    def tint(self, colour: np.ndarray, z: float, shade: float = 1.0) -> tuple:
        mix = 1 - np.exp(-max(z, 0) / self.sight)
        return tuple(
            float(v) for v in np.clip((1 - mix) * shade * colour + mix * self.haze, 0, 255)
        )

    def polygons(
        self, corners: np.ndarray, colour, ident: int, z: float, shade: float = 1.0
    ) -> None:
        """Fill polygons given by (K, P, 3) world corners."""
        self.fill(self.project(corners), self.tint(colour, z, shade), ident)

    def fill(self, shapes, colour: tuple, ident: int) -> None:
        cv2.fillPoly(self.canvas, list(shapes), colour)
        cv2.fillPoly(self.ids, list(shapes), ident)

    def ellipse(self, x, y, z, rx, ry, colour, ident, shade=1.0, angle=0.0) -> None:
        """An ellipse that faces the camera, centre and radii in metres."""
        (u, v), scale = self.project(np.array([x, y, z])), self.focal / z
        axes = (max(1, round(rx * scale)), max(1, round(ry * scale)))
        if abs(int(u)) > 4 * self.width:
            return
        for target, value in ((self.canvas, self.tint(colour, z, shade)), (self.ids, ident)):
            cv2.ellipse(target, (int(u), int(v)), axes, angle, 0, 360, value, -1)

    def stroke(self, points, z, width, colour, ident, shade=1.0, closed=False) -> None:
        """A line of `width` metres through (P, 2) X, Y points at depth z."""
        line = self.project(np.column_stack([points, np.full(len(points), z)]))[None]
        thickness = int(np.clip(round(width * self.focal / z), 1, 200))
        cv2.polylines(self.canvas, line, closed, self.tint(colour, z, shade), thickness)
        cv2.polylines(self.ids, line, closed, ident, thickness)

    def box(self, x, y, z, colour, ident) -> None:
        """The visible faces of a box; x, y, z are its (low, high)."""
        (x0, x1), (y0, y1), (z0, z1) = x, y, z
        for side, edge, visible in ((1, x0, x0 > 0), (-1, x1, x1 < 0)):
            if visible:
                face = [[edge, y0, z0], [edge, y0, z1], [edge, y1, z1], [edge, y1, z0]]
                self.polygons(np.array([face]), colour, ident, z0, 1.0 if side == self.sun else 0.6)
        if y1 < self.eye:
            top = [[x0, y1, z0], [x1, y1, z0], [x1, y1, z1], [x0, y1, z1]]
            self.polygons(np.array([top]), colour, ident, z0, 1.15)
        face = [[x0, y0, z0], [x1, y0, z0], [x1, y1, z0], [x0, y1, z0]]
        self.polygons(np.array([face]), colour, ident, z0, 0.85)

    def colour(self, low=20, high=235, spread=40) -> np.ndarray:
        """A random colour: a grey with a cast, as most things in a street are."""
        return np.clip(self.rng.uniform(low, high) + self.rng.uniform(-spread, spread, 3), 0, 255)

    def instance(self, name: str) -> int:
        self.count[name] += 1
        return ID[name] * 1000 + self.count[name] - 1

    # ---- the scene, from far to near -----------------------------------------------------------
    def paint(self) -> None:
        rng = self.rng
        self.paint_sky()
        self.road = rng.uniform(3.2, 6.5)  # half widths
        self.walk = self.road + rng.uniform(1.6, 4.0)
        self.front = self.walk + rng.uniform(0.2, 4.0)
        self.paint_ground()
        things = []
        for side in -1, 1:
            things += self.houses(side)
            things += self.furniture(side)
        things += self.traffic()
        for _z, draw in sorted(things, key=lambda thing: -thing[0]):
            draw()
        if rng.random() < 0.6:  # the bonnet of the car that carries the camera
            half, up = rng.uniform(0.25, 0.45) * self.width, rng.uniform(0.04, 0.11) * self.height
            centre = (int(self.width / 2), int(self.height + up))
            for target, value in ((self.canvas, tuple(self.colour(10, 90))), (self.ids, ID['ego'])):
                cv2.ellipse(target, centre, (int(half), int(2 * up)), 0, 0, 360, value, -1)

    def paint_sky(self) -> None:
        top = np.array(
            [self.rng.uniform(150, 250), self.rng.uniform(120, 200), self.rng.uniform(90, 190)]
        )
        if self.rng.random() < 0.4:  # overcast
            top[:] = self.rng.uniform(130, 230)
        ramp = np.linspace(0, 1, self.height)[:, None, None] ** 0.7
        sky = (1 - ramp) * top + ramp * self.haze
        clouds = self.field(4, 5)[..., None] * self.rng.uniform(0, 45)
        self.canvas[:] = np.clip(sky + clouds, 0, 255).astype(np.uint8)
        self.ids[:] = ID['sky']

    def paint_ground(self) -> None:
        rng = self.rng
        greens = np.array([rng.uniform(20, 80), rng.uniform(60, 130), rng.uniform(40, 120)])
        grey = self.colour(60, 140, 10)
        bands = [
            ('terrain', 200.0, greens),
            ('sidewalk', self.walk, self.colour(80, 170, 15)),
            ('road', self.road, grey),
        ]
        left = rng.choice(['sidewalk', 'terrain'], p=[0.8, 0.2])
        for name, half, colour in bands:
            for side in -1, 1:
                label = left if name == 'sidewalk' and side < 0 else name
                paint = greens if label == 'terrain' else colour
                for z0, z1 in ((14, 2 * _FAR), (5, 14), (_NEAR, 5)):  # haze in three steps
                    strip = [[0, 0, z0], [side * half, 0, z0], [side * half, 0, z1], [0, 0, z1]]
                    self.polygons(np.array([strip]), paint, ID[label], z0, rng.uniform(0.95, 1.05))
        for x in (-self.road, self.road):  # the kerb, part of the sidewalk
            kerb = [[x, 0, _NEAR], [1.04 * x, 0, _NEAR], [1.04 * x, 0, _FAR], [x, 0, _FAR]]
            self.polygons(np.array([kerb]), grey, ID['sidewalk'], 10, 1.3)
        for lane in rng.uniform(-0.5, 0.5, rng.integers(1, 3)) * self.road:
            marks = [
                [[lane, 0, z], [lane + 0.15, 0, z], [lane + 0.15, 0, z + 2.5], [lane, 0, z + 2.5]]
                for z in np.arange(rng.uniform(2, 4), 60, rng.uniform(5, 8))
            ]
            self.polygons(np.array(marks), np.full(3, 215.0), ID['road'], 10)
        for _ in range(rng.integers(0, 6)):  # shadows and patches on the road
            x, z = rng.uniform(-self.road, self.road), rng.uniform(3, 40)
            u, v = self.project(np.array([x, 0, z]))
            axes = (
                int(rng.uniform(0.5, 2.5) * self.focal / z),
                max(1, int(0.5 * self.focal / z**1.5)),
            )
            patch = np.zeros(self.ids.shape, np.uint8)
            cv2.ellipse(patch, (int(u), int(v)), axes, 0, 0, 360, 1, -1)
            dark = (patch > 0) & (self.ids == ID['road'])
            self.canvas[dark] = (self.canvas[dark] * rng.uniform(0.5, 0.85)).astype(np.uint8)

    def houses(self, side: int) -> list:
        """A row of facades, walls, fences and hedges along one side of the street."""
        rng, row, z = self.rng, [], _NEAR
        while z < _FAR:
            length = rng.uniform(5, 18)
            kind = rng.choice(['building', 'building', 'building', 'wall', 'fence', 'trees', 'gap'])
            x = side * (self.front + rng.uniform(0, 1.5))
            draw = partial(self.facade, kind, x, z, z + length)
            row.append((z + length, draw))
            z += length + rng.choice([0, 0, rng.uniform(0, 6)])
        return row

    def facade(self, kind: str, x: float, z0: float, z1: float) -> None:
        rng = self.rng
        shade = 1.0 if np.sign(x) != self.sun else 0.7
        if kind == 'gap':
            return
        if kind == 'trees':
            for z in np.arange(z1, z0, -3.5):
                self.tree(x + np.sign(x) * rng.uniform(0, 3), z, rng.uniform(4, 11))
            return
        height = dict(
            building=rng.uniform(5, 22), wall=rng.uniform(1.2, 3), fence=rng.uniform(1, 2.2)
        )[kind]
        colour = self.colour(50, 220, 35)
        quad = [[x, 0, z0], [x, 0, z1], [x, height, z1], [x, height, z0]]
        if kind == 'fence':
            posts = np.arange(z0, z1, 0.45)
            bars = [
                [[x, 0, z], [x, 0, z + 0.25], [x, height, z + 0.25], [x, height, z]] for z in posts
            ]
            self.fill(
                self.project(np.array([quad])), self.tint(colour * 0.6, z0, shade), ID['fence']
            )
            self.polygons(np.array(bars), colour, ID['fence'], z0, shade)
            return
        self.polygons(np.array([quad]), colour, ID[kind], (z0 + z1) / 2, shade)
        if kind == 'wall':
            return
        # the gable that looks at the camera
        end = [[x, 0, z0], [x + np.sign(x) * 14, 0, z0]]
        end += [[x + np.sign(x) * 14, height, z0], [x, height, z0]]
        self.polygons(np.array([end]), colour, ID[kind], z0, 0.8 * shade)
        floors, bay, pane = rng.uniform(2.6, 3.6), rng.uniform(1.6, 3.0), rng.uniform(0.5, 1.3)
        windows = [
            [[x, y, z], [x, y, z + pane], [x, y + 1.5, z + pane], [x, y + 1.5, z]]
            for y in np.arange(1.0, height - 1.8, floors)
            for z in np.arange(z0 + 0.5, z1 - pane, bay)
        ]
        if windows:
            self.polygons(np.array(windows), self.colour(15, 120, 25), ID[kind], z0, shade)

    def tree(self, x: float, z: float, height: float) -> None:
        rng = self.rng
        if z < 2.5:
            return
        trunk = np.array([rng.uniform(20, 50), rng.uniform(40, 70), rng.uniform(50, 90)])
        self.stroke([[x, 0], [x, 0.6 * height]], z, 0.28, trunk, ID['vegetation'])
        green = np.array([rng.uniform(15, 70), rng.uniform(60, 140), rng.uniform(30, 130)])
        for _ in range(10):
            dx, dy = rng.normal(0, 0.16 * height), rng.normal(0, 0.13 * height)
            radius = height * rng.uniform(0.10, 0.22)
            shade = rng.uniform(0.6, 1.15)
            self.ellipse(
                x + dx,
                0.7 * height + dy,
                z,
                radius,
                radius * rng.uniform(0.7, 1.1),
                green,
                ID['vegetation'],
                shade,
            )

    def furniture(self, side: int) -> list:
        """Trees, poles, lights, signs and pedestrians on one side."""
        rng, out = self.rng, []
        for _ in range(rng.integers(1, 4)):
            x, z = side * rng.uniform(self.road + 0.8, self.walk + 1), rng.uniform(5, 60)
            out.append((z, partial(self.tree, x, z, rng.uniform(3, 9))))
        for _ in range(rng.integers(1, 5)):
            x, z = side * rng.uniform(self.road + 0.2, self.road + 1), rng.uniform(4, 45)
            out.append((z, partial(self.pole, x, z, rng.choice(['lamp', 'light', 'sign', 'sign']))))
        for _ in range(rng.integers(1, 7)):
            on_walk = rng.random() < 0.85
            x = (
                side * rng.uniform(self.road + 0.4, self.walk)
                if on_walk
                else rng.uniform(-1, 1) * self.road
            )
            z = rng.uniform(3.5, 35)
            out.append((z, partial(self.person, x, z)))
        return out

    def pole(self, x: float, z: float, kind: str) -> None:
        rng = self.rng
        height = dict(
            lamp=rng.uniform(5, 8), light=rng.uniform(2.8, 4), sign=rng.uniform(2.0, 3.0)
        )[kind]
        grey = self.colour(50, 160, 12)
        self.stroke([[x, 0], [x, height]], z, rng.uniform(0.09, 0.16), grey, ID['pole'])
        if kind == 'lamp':
            arm = x - np.sign(x) * rng.uniform(0.8, 2)
            self.stroke([[x, height], [arm, height + 0.2]], z, 0.1, grey, ID['pole'])
        elif kind == 'light':
            at = dict(ident=ID['light'], z=z)
            body = [
                [x - 0.2, height - 1],
                [x + 0.2, height - 1],
                [x + 0.2, height],
                [x - 0.2, height],
            ]
            shape = np.column_stack([body, np.full(4, z)])[None]
            self.polygons(shape, np.full(3, 25.0), ID['light'], z)
            lamp = rng.integers(3)
            glow = np.array([[40, 40, 240], [40, 190, 250], [90, 220, 60]][lamp], float)
            self.ellipse(x, height - 0.2 - 0.3 * lamp, rx=0.11, ry=0.11, colour=glow, **at)
        else:
            radius = rng.uniform(0.28, 0.45)
            paint = np.array(
                [[30, 30, 210], [200, 90, 30], [40, 200, 230], [230, 230, 230]][rng.integers(4)],
                float,
            )
            corners = rng.choice([3, 4, 24])
            for r, c in ((radius, paint), (0.65 * radius, np.full(3, rng.choice([20.0, 235.0])))):
                a = 2 * np.pi * (np.arange(corners) / corners) + np.pi / 2
                shape = np.column_stack(
                    [x + r * np.cos(a), height + r * np.sin(a), np.full(corners, z)]
                )
                self.polygons(shape[None], c, ID['sign'], z)

    def person(self, x: float, z: float, ident: int | None = None, seat: float = 0.0) -> None:
        """A walking person, or the rider of something whose seat is that high."""
        rng = self.rng
        ident = self.instance('person') if ident is None else ident
        tall = rng.uniform(1.25, 1.9)
        top, trousers = self.colour(15, 220, 70), self.colour(15, 160, 50)
        skin = np.array([rng.uniform(60, 160), rng.uniform(80, 180), rng.uniform(100, 220)])
        hip, neck = (0.48 * tall, 0.82 * tall) if not seat else (seat, seat + 0.36 * tall)
        step = rng.uniform(0, 0.25)
        for foot in -step, step:
            ground = 0.0 if not seat else seat - 0.42 * tall
            self.stroke([[x, hip], [x + foot, ground + 0.05]], z, 0.16, trousers, ident)
        self.stroke(
            [[x, hip], [x + rng.uniform(-0.08, 0.08), neck]], z, rng.uniform(0.32, 0.5), top, ident
        )
        for arm in -1, 1:
            hand = [x + arm * rng.uniform(0.2, 0.4), hip + rng.uniform(-0.05, 0.35)]
            self.stroke([[x + 0.16 * arm, neck - 0.05], hand], z, 0.1, top, ident, 0.9)
        self.ellipse(x, neck + 0.1 * tall, z, 0.1, 0.13, skin, ident)

    def traffic(self) -> list:
        rng, out = self.rng, []
        kinds = ['car'] * 8 + ['truck', 'bus', 'train', 'cycle', 'cycle', 'cycle']
        taken: list[tuple[float, float]] = []
        for _ in range(rng.integers(3, 11)):
            kind = rng.choice(kinds)
            parked = rng.random() < 0.5 and kind in ('car', 'cycle', 'truck')
            reach = self.road - 1.0
            x = rng.choice([-1, 1]) * (reach + 0.2) if parked else rng.uniform(-0.8, 0.8) * reach
            z = rng.uniform(6, 18 if rng.random() < 0.4 else 60)
            if any(abs(x - a) < 2.2 and abs(z - b) < 5 for a, b in taken):
                continue
            taken.append((x, z))
            draw = (
                partial(self.cycle, x, z) if kind == 'cycle' else partial(self.vehicle, kind, x, z)
            )
            out.append((z, draw))
        return out

    def vehicle(self, kind: str, x: float, z: float) -> None:
        rng, ident = self.rng, self.instance(kind)
        width, height, length = dict(
            car=(rng.uniform(1.6, 1.95), rng.uniform(1.35, 1.75), rng.uniform(3.5, 4.8)),
            truck=(rng.uniform(2.0, 2.5), rng.uniform(2.5, 3.8), rng.uniform(5.5, 9)),
            bus=(2.5, rng.uniform(2.9, 3.4), rng.uniform(9, 13)),
            train=(2.5, rng.uniform(3.3, 3.9), rng.uniform(18, 30)),
        )[kind]
        paint, glass = self.colour(15, 235, 60), self.colour(15, 70, 10)
        left, right = x - width / 2, x + width / 2
        shadow = [[left - 0.15, 0, z - 0.2], [right + 0.15, 0, z - 0.2]]
        shadow += [[right + 0.15, 0, z + length], [left - 0.15, 0, z + length]]
        spot = self.project(np.array([shadow]))
        cv2.fillPoly(
            self.canvas, list(spot), self.tint(np.full(3, 28.0), z)
        )  # keeps the road's label
        for wheel in left + 0.15, right - 0.15:
            self.ellipse(wheel, 0.3, z + 0.4, 0.16, 0.33, np.full(3, 18.0), ident)
        bonnet = 0.25 if kind != 'train' else 0.1
        if kind == 'car':
            waist = 0.58 * height
            self.box((left, right), (bonnet, waist), (z, z + length), paint, ident)
            cabin = (left + 0.12, right - 0.12), (waist, height), (z + 0.3, z + 0.7 * length)
            self.box(*cabin, paint * 0.9, ident)
            pane = (left + 0.22, right - 0.22), (waist + 0.04, height - 0.1)
        elif kind == 'truck':
            self.box((left, right), (0.5, height), (z, z + length), paint, ident)
            bonnet, pane = 0.5, None
        else:
            self.box((left, right), (bonnet, height), (z, z + length), paint, ident)
            pane = (left + 0.15, right - 0.15), (0.45 * height, 0.85 * height)
            self.side_windows(left, right, (0.5 * height, 0.85 * height), z, length, glass, ident)
        if pane:
            (a, b), (y0, y1) = pane
            front = z if kind != 'car' else z + 0.3
            face = [[a, y0, front], [b, y0, front], [b, y1, front], [a, y1, front]]
            self.polygons(np.array([face]), glass, ident, z)
        lamp = np.array([30.0, 30.0, 200.0]) if rng.random() < 0.5 else np.full(3, 225.0)
        for u in left + 0.22, right - 0.22:
            self.ellipse(u, bonnet + 0.4, z, 0.14, 0.09, lamp, ident)

    def side_windows(self, left, right, y, z, length, glass, ident) -> None:
        edge = left if left > 0 else right if right < 0 else None
        if edge is None:
            return
        panes = [
            [[edge, y[0], a], [edge, y[0], a + 1.1], [edge, y[1], a + 1.1], [edge, y[1], a]]
            for a in np.arange(z + 0.5, z + length - 1.2, 1.5)
        ]
        self.polygons(np.array(panes), glass, ident, z)

    def cycle(self, x: float, z: float) -> None:
        """A bicycle or a motorcycle, mostly with its rider."""
        rng = self.rng
        kind = rng.choice(['bicycle', 'motorcycle'], p=[0.65, 0.35])
        ident, heavy = self.instance(kind), kind == 'motorcycle'
        paint, tyre = self.colour(20, 220, 70), np.full(3, 22.0)
        if rng.random() < 0.5:  # seen from behind
            self.stroke([[x, 0.05], [x, 0.75]], z, 0.28 if heavy else 0.08, tyre, ident)
            self.stroke([[x, 0.5], [x, 1.0]], z, 0.4 if heavy else 0.12, paint, ident)
            self.stroke([[x - 0.35, 1.05], [x + 0.35, 1.05]], z, 0.07, tyre, ident)
        else:
            for wheel in x - 0.52, x + 0.52:
                angle = np.linspace(0, 2 * np.pi, 13)[:-1]
                ring = np.column_stack([wheel + 0.33 * np.cos(angle), 0.34 + 0.33 * np.sin(angle)])
                self.stroke(ring, z, 0.16 if heavy else 0.06, tyre, ident, closed=True)
            frame = [[x - 0.52, 0.34], [x - 0.1, 0.85], [x + 0.4, 0.9], [x + 0.52, 0.34]]
            self.stroke(frame, z, 0.3 if heavy else 0.08, paint, ident)
            self.stroke([[x - 0.1, 0.34], [x - 0.1, 0.9]], z, 0.3 if heavy else 0.07, paint, ident)
        if rng.random() < 0.75:
            self.person(x, z, self.instance('rider'), seat=0.85)

    # ---- from the painted canvas to a photograph -------------------------------------------------
    def field(self, cells: int, octaves: int) -> np.ndarray:
        """Smooth noise (H, W) in about -1..1, the coarsest octave `cells` cells high."""
        total = np.zeros((self.height, self.width), np.float32)
        for octave in range(octaves):
            rows = min(cells << octave, self.height)
            columns = min(2 * cells << octave, self.width)
            grid = self.rng.standard_normal((rows, columns), np.float32) / (octave + 1)
            total += cv2.resize(grid, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        return total / 2

    def develop(self) -> np.ndarray:
        rng = self.rng
        roughness = np.full(256, 0.10, np.float32)
        for name, value in _ROUGHNESS.items():
            roughness[ID[name]] = value
        image = self.canvas.astype(np.float32)
        classes = np.where(self.ids >= 1000, self.ids // 1000, self.ids).astype(np.uint8)
        image *= (1 + roughness[classes] * self.field(24, 4))[..., None]
        light = 1 + rng.uniform(0, 0.3) * self.field(2, 1)  # clouds, lamps, a low sun
        image *= light[..., None] * rng.uniform(0.55, 1.15)
        image *= rng.uniform(0.9, 1.1, 3).astype(np.float32)  # white balance
        image = cv2.GaussianBlur(image, (0, 0), self.width / 512 * rng.uniform(0.3, 0.9))
        image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 9))
        return np.clip(image, 0, 255).astype(np.uint8)


def render(
    seed: int, split: str, index: int, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) uint8 BGR and Cityscapes instance ids (H, W) int32 of one scene."""
    scene = Scene(np.random.default_rng([seed, SPLITS.index(split), index]), width, height)
    return scene.image, scene.ids


def annotations(ids: np.ndarray) -> list[dict]:
    """The things of a scene as COCO annotations: polygons and boxes xywh of what is visible."""
    found = []
    for ident in np.unique(ids[ids >= 1000]):
        mask = (ids == ident).astype(np.uint8)
        area = int(mask.sum())
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        polygons = [o.reshape(-1).tolist() for o in outlines if len(o) >= 3]
        if area < _MIN_AREA or not polygons:
            continue
        box = cv2.boundingRect(cv2.findNonZero(mask))
        found.append(
            dict(
                category_id=int(ident) // 1000,
                segmentation=polygons,
                bbox=list(box),
                area=area,
                iscrowd=0,
            )
        )
    return found


def _write(
    root: str, seed: int, width: int, height: int, job: tuple[str, int]
) -> tuple[dict, list]:
    """Render one scene and write its four files; returns its COCO entries."""
    split, index = job
    cv2.setNumThreads(1)
    image, ids = render(seed, split, index, width, height)
    stem = f'street_{index:06d}_000000'
    photos, labels = (Path(root, kind, split, 'street') for kind in ('leftImg8bit', 'gtFine'))
    classes = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
    files = {
        photos / f'{stem}_leftImg8bit.png': image,
        labels / f'{stem}_gtFine_labelIds.png': classes,
        labels / f'{stem}_gtFine_labelTrainIds.png': TRAIN_ID[classes],
        labels / f'{stem}_gtFine_instanceIds.png': ids.astype(np.uint16),
    }
    for path, array in files.items():
        if not cv2.imwrite(str(path), array, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise OSError(f'cannot write {path}')
    entry = dict(file_name=f'street/{stem}_leftImg8bit.png', width=width, height=height)
    return entry, annotations(ids)


def generate(
    root: str | Path,
    *,
    images: dict[str, int],
    size: tuple[int, int] = (512, 256),
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a `street` data set.

    Args:
        root: the folder to make, in the Cityscapes layout.
        images: how many scenes per split, e.g. `dict(train=100, val=20)`.
        size: width and height in pixels, at least 64 x 32.
        seed: all images follow from it.
        overwrite: replace a `street` set that is there already.

    Raises:
        UsageError: size or number of scenes out of range; `root` holds something and `overwrite`
            is off, or holds something that is not a `street` set.
    """
    root, (width, height) = Path(root), size
    if width < 64 or height < 32:
        raise UsageError(f'street: size {width}x{height} is too small. Use 64x32 or more.')
    if min(images.values()) < 0 or not any(images.values()):
        raise UsageError(f'street: {images} scenes. Use 0 or more of each, and one at least.')
    mark = root / 'street.json'
    if root.exists() and any(root.iterdir()):
        if not mark.exists():
            raise UsageError(f'street: {root} holds other files. Choose another folder with --out.')
        if not overwrite:
            raise UsageError(f'street: {root} holds a set already. Use --overwrite to replace it.')
        shutil.rmtree(root)
    for split in images:
        for kind in 'leftImg8bit', 'gtFine':
            (root / kind / split / 'street').mkdir(parents=True)
    (root / 'annotations').mkdir()
    mark.write_text(json.dumps(dict(images=images, size=size, seed=seed)) + '\n')
    jobs = [(split, index) for split, count in images.items() for index in range(count)]
    work = partial(_write, str(root), seed, width, height)
    workers = min(len(os.sched_getaffinity(0)), max(len(jobs), 1))
    # spawn: a fork of a process that runs threads, as torch does, can hang
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
        done = track(pool.map(work, jobs, chunksize=4), total=len(jobs), title=f'street -> {root}')
        results = dict(zip(jobs, done))
    categories = [dict(id=ID[name], name=name) for name in THINGS]
    for split, count in images.items():
        coco = dict(images=[], annotations=[], categories=categories)
        for index in range(count):
            entry, things = results[split, index]
            coco['images'].append(dict(id=index + 1, **entry))
            for thing in things:
                ident = len(coco['annotations']) + 1
                coco['annotations'].append(dict(id=ident, image_id=index + 1, **thing))
        path = root / 'annotations' / f'instancesonly_filtered_gtFine_{split}.json'
        path.write_text(json.dumps(coco))
