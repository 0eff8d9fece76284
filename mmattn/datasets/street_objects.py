"""Things of a `street` scene, each drawn onto a canvas: houses, trees, poles, people, vehicles.

Positions in metres: x to the right of the camera, z in front of it.
"""

import cv2
import numpy as np

from .street_canvas import Canvas
from .street_labels import ID


def draw_facade(canvas: Canvas, kind: str, x: float, z0: float, z1: float) -> None:
    rng = canvas.rng
    shade = 1.0 if np.sign(x) != canvas.lit_side else 0.7
    if kind == 'gap':
        return
    if kind == 'trees':
        for z in np.arange(z1, z0, -3.5):
            draw_tree(canvas, x + np.sign(x) * rng.uniform(0, 3), z, rng.uniform(4, 11))
        return
    height = dict(building=rng.uniform(5, 22), wall=rng.uniform(1.2, 3), fence=rng.uniform(1, 2.2))[
        kind
    ]
    colour = canvas.random_colour(50, 220, 35)
    quad = [[x, 0, z0], [x, 0, z1], [x, height, z1], [x, height, z0]]
    if kind == 'fence':
        posts = np.arange(z0, z1, 0.45)
        bars = [[[x, 0, z], [x, 0, z + 0.25], [x, height, z + 0.25], [x, height, z]] for z in posts]
        canvas.fill(
            canvas.project(np.array([quad])), canvas.tint(colour * 0.6, z0, shade), ID['fence']
        )
        canvas.polygons(np.array(bars), colour, ID['fence'], z0, shade)
        return
    canvas.polygons(np.array([quad]), colour, ID[kind], (z0 + z1) / 2, shade)
    if kind == 'wall':
        return
    # the gable that looks at the camera
    end = [[x, 0, z0], [x + np.sign(x) * 14, 0, z0]]
    end += [[x + np.sign(x) * 14, height, z0], [x, height, z0]]
    canvas.polygons(np.array([end]), colour, ID[kind], z0, 0.8 * shade)
    floors, bay, pane = rng.uniform(2.6, 3.6), rng.uniform(1.6, 3.0), rng.uniform(0.5, 1.3)
    windows = [
        [[x, y, z], [x, y, z + pane], [x, y + 1.5, z + pane], [x, y + 1.5, z]]
        for y in np.arange(1.0, height - 1.8, floors)
        for z in np.arange(z0 + 0.5, z1 - pane, bay)
    ]
    if windows:
        canvas.polygons(np.array(windows), canvas.random_colour(15, 120, 25), ID[kind], z0, shade)


def draw_tree(canvas: Canvas, x: float, z: float, height: float) -> None:
    rng = canvas.rng
    if z < 2.5:
        return
    trunk = np.array([rng.uniform(20, 50), rng.uniform(40, 70), rng.uniform(50, 90)])
    canvas.stroke([[x, 0], [x, 0.6 * height]], z, 0.28, trunk, ID['vegetation'])
    green = np.array([rng.uniform(15, 70), rng.uniform(60, 140), rng.uniform(30, 130)])
    for _ in range(10):
        dx, dy = rng.normal(0, 0.16 * height), rng.normal(0, 0.13 * height)
        radius = height * rng.uniform(0.10, 0.22)
        shade = rng.uniform(0.6, 1.15)
        canvas.ellipse(
            x + dx,
            0.7 * height + dy,
            z,
            radius,
            radius * rng.uniform(0.7, 1.1),
            green,
            ID['vegetation'],
            shade,
        )


def draw_pole(canvas: Canvas, x: float, z: float, kind: str) -> None:
    rng = canvas.rng
    height = dict(lamp=rng.uniform(5, 8), light=rng.uniform(2.8, 4), sign=rng.uniform(2.0, 3.0))[
        kind
    ]
    grey = canvas.random_colour(50, 160, 12)
    canvas.stroke([[x, 0], [x, height]], z, rng.uniform(0.09, 0.16), grey, ID['pole'])
    if kind == 'lamp':
        arm = x - np.sign(x) * rng.uniform(0.8, 2)
        canvas.stroke([[x, height], [arm, height + 0.2]], z, 0.1, grey, ID['pole'])
    elif kind == 'light':
        target = dict(ident=ID['light'], z=z)
        body = [
            [x - 0.2, height - 1],
            [x + 0.2, height - 1],
            [x + 0.2, height],
            [x - 0.2, height],
        ]
        shape = np.column_stack([body, np.full(4, z)])[None]
        canvas.polygons(shape, np.full(3, 25.0), ID['light'], z)
        lamp = rng.integers(3)
        glow = np.array([[40, 40, 240], [40, 190, 250], [90, 220, 60]][lamp], float)
        canvas.ellipse(x, height - 0.2 - 0.3 * lamp, rx=0.11, ry=0.11, colour=glow, **target)
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
            canvas.polygons(shape[None], c, ID['sign'], z)


def draw_person(
    canvas: Canvas, x: float, z: float, ident: int | None = None, seat: float = 0.0
) -> None:
    """A walking person, or the rider of a vehicle whose seat is `seat` metres high."""
    rng = canvas.rng
    ident = canvas.new_instance('person') if ident is None else ident
    tall = rng.uniform(1.25, 1.9)
    top, trousers = canvas.random_colour(15, 220, 70), canvas.random_colour(15, 160, 50)
    skin = np.array([rng.uniform(60, 160), rng.uniform(80, 180), rng.uniform(100, 220)])
    hip, neck = (0.48 * tall, 0.82 * tall) if not seat else (seat, seat + 0.36 * tall)
    step = rng.uniform(0, 0.25)
    for foot in -step, step:
        ground = 0.0 if not seat else seat - 0.42 * tall
        canvas.stroke([[x, hip], [x + foot, ground + 0.05]], z, 0.16, trousers, ident)
    canvas.stroke(
        [[x, hip], [x + rng.uniform(-0.08, 0.08), neck]], z, rng.uniform(0.32, 0.5), top, ident
    )
    for arm in -1, 1:
        hand = [x + arm * rng.uniform(0.2, 0.4), hip + rng.uniform(-0.05, 0.35)]
        canvas.stroke([[x + 0.16 * arm, neck - 0.05], hand], z, 0.1, top, ident, 0.9)
    canvas.ellipse(x, neck + 0.1 * tall, z, 0.1, 0.13, skin, ident)


def draw_vehicle(canvas: Canvas, kind: str, x: float, z: float) -> None:
    rng, ident = canvas.rng, canvas.new_instance(kind)
    width, height, length = dict(
        car=(rng.uniform(1.6, 1.95), rng.uniform(1.35, 1.75), rng.uniform(3.5, 4.8)),
        truck=(rng.uniform(2.0, 2.5), rng.uniform(2.5, 3.8), rng.uniform(5.5, 9)),
        bus=(2.5, rng.uniform(2.9, 3.4), rng.uniform(9, 13)),
        train=(2.5, rng.uniform(3.3, 3.9), rng.uniform(18, 30)),
    )[kind]
    paint, glass = canvas.random_colour(15, 235, 60), canvas.random_colour(15, 70, 10)
    left, right = x - width / 2, x + width / 2
    shadow = [[left - 0.15, 0, z - 0.2], [right + 0.15, 0, z - 0.2]]
    shadow += [[right + 0.15, 0, z + length], [left - 0.15, 0, z + length]]
    spot = canvas.project(np.array([shadow]))
    cv2.fillPoly(
        canvas.image, list(spot), canvas.tint(np.full(3, 28.0), z)
    )  # keeps the road's label
    for wheel in left + 0.15, right - 0.15:
        canvas.ellipse(wheel, 0.3, z + 0.4, 0.16, 0.33, np.full(3, 18.0), ident)
    bonnet = 0.25 if kind != 'train' else 0.1
    if kind == 'car':
        waist = 0.58 * height
        canvas.box((left, right), (bonnet, waist), (z, z + length), paint, ident)
        cabin = (left + 0.12, right - 0.12), (waist, height), (z + 0.3, z + 0.7 * length)
        canvas.box(*cabin, paint * 0.9, ident)
        pane = (left + 0.22, right - 0.22), (waist + 0.04, height - 0.1)
    elif kind == 'truck':
        canvas.box((left, right), (0.5, height), (z, z + length), paint, ident)
        bonnet, pane = 0.5, None
    else:
        canvas.box((left, right), (bonnet, height), (z, z + length), paint, ident)
        pane = (left + 0.15, right - 0.15), (0.45 * height, 0.85 * height)
        _draw_side_windows(
            canvas, left, right, (0.5 * height, 0.85 * height), z, length, glass, ident
        )
    if pane:
        (a, b), (y0, y1) = pane
        front = z if kind != 'car' else z + 0.3
        face = [[a, y0, front], [b, y0, front], [b, y1, front], [a, y1, front]]
        canvas.polygons(np.array([face]), glass, ident, z)
    lamp = np.array([30.0, 30.0, 200.0]) if rng.random() < 0.5 else np.full(3, 225.0)
    for u in left + 0.22, right - 0.22:
        canvas.ellipse(u, bonnet + 0.4, z, 0.14, 0.09, lamp, ident)


def _draw_side_windows(canvas: Canvas, left, right, y, z, length, glass, ident) -> None:
    edge = left if left > 0 else right if right < 0 else None
    if edge is None:
        return
    panes = [
        [[edge, y[0], a], [edge, y[0], a + 1.1], [edge, y[1], a + 1.1], [edge, y[1], a]]
        for a in np.arange(z + 0.5, z + length - 1.2, 1.5)
    ]
    canvas.polygons(np.array(panes), glass, ident, z)


def draw_cycle(canvas: Canvas, x: float, z: float) -> None:
    """A bicycle or a motorcycle, mostly with its rider."""
    rng = canvas.rng
    kind = rng.choice(['bicycle', 'motorcycle'], p=[0.65, 0.35])
    ident, heavy = canvas.new_instance(kind), kind == 'motorcycle'
    paint, tyre = canvas.random_colour(20, 220, 70), np.full(3, 22.0)
    if rng.random() < 0.5:  # seen from the rear
        canvas.stroke([[x, 0.05], [x, 0.75]], z, 0.28 if heavy else 0.08, tyre, ident)
        canvas.stroke([[x, 0.5], [x, 1.0]], z, 0.4 if heavy else 0.12, paint, ident)
        canvas.stroke([[x - 0.35, 1.05], [x + 0.35, 1.05]], z, 0.07, tyre, ident)
    else:
        for wheel in x - 0.52, x + 0.52:
            angle = np.linspace(0, 2 * np.pi, 13)[:-1]
            ring = np.column_stack([wheel + 0.33 * np.cos(angle), 0.34 + 0.33 * np.sin(angle)])
            canvas.stroke(ring, z, 0.16 if heavy else 0.06, tyre, ident, closed=True)
        frame = [[x - 0.52, 0.34], [x - 0.1, 0.85], [x + 0.4, 0.9], [x + 0.52, 0.34]]
        canvas.stroke(frame, z, 0.3 if heavy else 0.08, paint, ident)
        canvas.stroke([[x - 0.1, 0.34], [x - 0.1, 0.9]], z, 0.3 if heavy else 0.07, paint, ident)
    if rng.random() < 0.75:
        draw_person(canvas, x, z, canvas.new_instance('rider'), seat=0.85)
