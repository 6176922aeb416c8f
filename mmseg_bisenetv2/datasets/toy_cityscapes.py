"""A procedural toy Cityscapes: cartoon street scenes in the folder layout of the real data set.

It stands in where the real images, which may not be passed on, are not at hand: first training
runs, tests, benchmarks. A pinhole camera looks down a street on flat ground; X points right, Y up
from the ground, Z forward, in metres. Every object is painted, from far to near, with the same
polygons into the image and into the label map, so that sizes and occlusions follow from depth.
"""
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from mmseg_bisenetv2.datasets.label_ids import LABEL_IDS

CITIES = {'train': 'toyville', 'val': 'toyburg'}
MARKER = 'toy_cityscapes.json'

_IDS = LABEL_IDS | {'ego vehicle': 1}  # The own car's bonnet is not evaluated.
_TRAIN_IDS = np.full(256, 255, np.uint8)
_TRAIN_IDS[list(LABEL_IDS.values())] = np.arange(len(LABEL_IDS))

Array = np.ndarray
Colour = Any  # BGR, 0 to 255, a tuple or an array
Pose = tuple[float, float, float]  # X and Z in metres, yaw in radians

_NEAR, _FAR, _LANE = 1.2, 160.0, 3.4  # metres
_ACROSS = np.pi / 2  # The yaw of what faces the camera; with yaw 0 it heads away from it.
# Contrast of the surface texture, fine and coarse, relative to the colour.
_TEXTURE = {
    'road': (.04, .05), 'sidewalk': (.06, .06), 'building': (.04, .08), 'wall': (.10, .10),
    'vegetation': (.16, .12), 'terrain': (.14, .15), 'sky': (0, 0), 'ego vehicle': (0, 0)}

_GLASS, _DARK, _STEEL, _WHITE = (95, 80, 65), (35, 33, 32), (110, 110, 108), (235, 235, 235)
_RED, _YELLOW, _BLUE, _GREEN = (40, 35, 200), (50, 200, 235), (170, 90, 30), (90, 150, 70)
_SKIN, _LEAF = (120, 155, 205), ((60, 110, 70), (45, 95, 85), (70, 130, 90))
_PAINT = (_DARK, _WHITE, _RED, _BLUE, _GREEN, (170, 170, 175), (110, 105, 100), (70, 170, 210))
_FACADE = ((150, 190, 215), (80, 95, 150), (165, 165, 165), (205, 215, 220), (110, 125, 140))

# Width in metres, colours, and boxes: where each begins and ends, as shares of the length; bottom
# and top in metres; by how many metres the top is drawn in; the windows, see _Scene.box.
_VEHICLES: dict[str, tuple[float, Sequence[Colour], Sequence[tuple]]] = {
    'car': (1.8, _PAINT, (((-.5, .5), (.3, .92), .05, None),
                          ((-.36, .25), (.92, 1.55), .22, (1.6, 1, .1, .85)))),
    'truck': (2.4, _PAINT, (((-.5, .2), (.6, 3.3), 0, None),
                            ((.23, .5), (.5, 2.5), .12, (2, 1, .5, .9)))),
    'bus': (2.5, (_YELLOW, _RED, _WHITE), (((-.5, .5), (.4, 3.1), .06, (1.8, 1, .42, .84)),)),
    'train': (2.5, (_WHITE, _YELLOW), (((-.5, -.01), (.2, 3.4), .12, (1.4, 1, .5, .8)),
                                       ((.01, .5), (.2, 3.4), .12, (1.4, 1, .5, .8))))}
# Radius and distance of the wheels, and thickness of the frame, in metres.
_TWO_WHEELERS = {'bicycle': (.36, 1.06, .08), 'motorcycle': (.34, 1.4, .24)}


def _rect(u0: float, v0: float, u1: float, v1: float) -> Array:
    return np.array([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], float)


def _disc(u: float, v: float, radius: float, radius_v: Any = 0, corners: int = 18) -> Array:
    turn = np.arange(corners) * 2 * np.pi / corners
    return np.stack([u + radius * np.sin(turn), v + (radius_v or radius) * np.cos(turn)], -1)


def _bar(start: Any, end: Any, thickness: float) -> Array:
    start, end = np.array(start, float), np.array(end, float)
    along = (end - start) / np.linalg.norm(end - start)
    aside = np.array([-along[1], along[0]]) * thickness / 2
    return np.stack([start - aside, start + aside, end + aside, end - aside])


class _Scene:
    """Image and label map of one scene, and the camera that projects into both."""

    def __init__(self, rng: Generator, size: tuple[int, int]) -> None:
        height, width = size
        self.rng, self.size = rng, size
        self.image, self.label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
        self.focal = height * rng.uniform(1.15, 1.35)
        self.centre, self.horizon = width * rng.uniform(.44, .56), height * rng.uniform(.4, .48)
        self.eye = np.array([0, rng.uniform(1.3, 1.6), 0])
        self.objects: list[tuple[float, float, Callable[[], None]]] = []

    def pick(self, palette: Sequence[Colour], jitter: float = 14) -> Array:
        """Picks a colour and varies it."""
        colour: Array = np.array(palette[int(self.rng.integers(len(palette)))], np.float64)
        colour = colour * self.rng.uniform(.8, 1.15) + self.rng.normal(0, jitter, 3)
        return np.clip(colour, 10, 245)

    def fill(self, points: Array, colour: Colour, name: str | None = None) -> None:
        """Paints polygons, (N, 3) or (M, N, 3), and labels them if they have a name."""
        scale = self.focal / np.maximum(points[..., 2], _NEAR)
        pixels = np.stack([self.centre + scale * points[..., 0],
                           self.horizon + scale * (self.eye[1] - points[..., 1])], -1)
        polygons = np.rint(pixels * 16).astype(np.int32, order='C')  # with 4 fractional bits
        polygons = polygons.reshape(-1, *polygons.shape[-2:])
        cv2.fillPoly(self.image, polygons, np.clip(colour, 0, 255).tolist(), shift=4)
        if name is not None:
            cv2.fillPoly(self.label, polygons, _IDS[name], shift=4)

    def patch(self, pose: Pose, points: Array, colour: Colour, name: str | None = None) -> None:
        """Paints polygons of the upright plane along ``pose``, given as (along, height)."""
        (x, z, yaw), along = pose, points[..., 0]
        self.fill(np.stack([x + along * np.sin(yaw), points[..., 1], z + along * np.cos(yaw)], -1),
                  colour, name)

    def box(self, name: str, pose: Pose, along: Sequence[float] | Array, width: float,
            heights: Sequence[float], colour: Array, taper: float = 0,
            windows: tuple[float, int, float, float] | None = None, wheel: float = 0) -> None:
        """Paints the visible faces of a box whose top is drawn in by ``taper`` metres.

        ``windows`` are about so many metres wide, in so many rows, between two shares of the
        height. ``wheel`` is a radius.
        """
        (x, z, yaw), corners = pose, []
        for y, t in zip(heights, (0, taper), strict=True):
            ahead = np.array([along[0] + t] * 2 + [along[1] - t] * 2)
            aside = np.array([-1, 1, 1, -1]) * (width / 2 - t)
            corners.append(np.stack([x + ahead * np.sin(yaw) + aside * np.cos(yaw), 0 * ahead + y,
                                     z + ahead * np.cos(yaw) - aside * np.sin(yaw)], -1))
        bottom, top = corners
        glass = self.pick((_GLASS, _STEEL))
        for i in range(5):  # rear, side, front, side, top
            j = (i + 1) % 4
            quad = top if i == 4 else np.stack([bottom[i], bottom[j], top[j], top[i]])
            inward = np.cross(quad[1] - quad[0], quad[3] - quad[0])
            inward /= np.linalg.norm(inward)
            if inward @ (quad.mean(0) - self.eye) <= 0:
                continue  # The face is turned away from the camera.
            light = .86 - .14 * inward[1] - .12 * inward[0]
            self.fill(quad, colour * light, name)
            length = float(np.linalg.norm(quad[1] - quad[0]))
            if windows and i < 4:
                pane, rows, v0, v1 = windows
                columns = max(1, round(length / pane))
                cells = np.indices((columns, rows)).reshape(2, -1).T[:, None]
                panes = (cells + _rect(.1, .1, .9, .9)) / (columns, rows) * (1, v1 - v0) + (0, v0)
                self.fill(_on_quad(quad, panes), glass * light)
            if wheel and i in (1, 3):
                for u in (.2, .8):
                    tyre = _disc(u, 0, wheel / length, wheel / (heights[1] - heights[0]))
                    self.fill(_on_quad(quad, tyre), _DARK, name)

    def later(self, band: float, z: float, draw: Callable[..., None], *args: Any) -> None:
        """Queues an object that is at least ``|band|`` metres aside and begins at depth ``z``.

        No object can be hidden by one that stands farther aside, however near that one is: depth
        decides only between objects of the same band.
        """
        self.objects.append((abs(band), z, partial(draw, self, *args)))


def _on_quad(quad: Array, uv: Array) -> Array:
    """Maps ``uv`` in [0, 1]^2 onto a quad with the corners (0, 0), (1, 0), (1, 1), (0, 1)."""
    u, v = uv[..., :1], uv[..., 1:]
    return (1 - v) * ((1 - u) * quad[0] + u * quad[1]) + v * ((1 - u) * quad[3] + u * quad[2])


def _strip(scene: _Scene, x0: float, x1: float, colour: Colour, name: str | None = None,
           z0: float = _NEAR, z1: float = _FAR) -> None:
    """Paints a band of ground along the street."""
    scene.fill(np.array([(x0, 0, z0), (x0, 0, z1), (x1, 0, z1), (x1, 0, z0)]), colour, name)


def _ground_and_sky(scene: _Scene, road: tuple[float, float], walks: Array) -> None:
    rng, below = scene.rng, slice(int(scene.horizon), None)
    zenith, haze = scene.pick(((200, 140, 80), (170, 150, 140))), scene.pick(((225, 220, 220),))
    ramp = np.clip(np.arange(scene.size[0]) / scene.horizon, 0, 1)[:, None, None]
    scene.image[:], scene.label[:] = (1 - ramp) * zenith + ramp * haze, _IDS['sky']
    scene.image[below] = scene.pick(((70, 120, 95), (60, 100, 110), (75, 110, 75)))  # grass
    scene.label[below] = _IDS['terrain']
    asphalt = rng.uniform(75, 130) + rng.normal(0, 4, 3)
    paving = asphalt * rng.uniform(1.05, 1.4) + rng.normal(0, 8, 3)
    for kerb, outer in zip(road, walks, strict=True):
        _strip(scene, kerb, outer, paving, 'sidewalk')
        _strip(scene, kerb - .12, kerb + .12, paving * 1.2, 'sidewalk')
    _strip(scene, *road, asphalt, 'road')
    for lane in np.arange(road[0] + _LANE, road[1] - 1, _LANE):
        for start in np.arange(rng.uniform(2, 8), 90, 7):
            _strip(scene, lane - .09, lane + .09, (215, 220, 220), None, start, start + 3)


def _plant(scene: _Scene, x: float, z: float) -> None:
    """Paints a tree or a bush: clumps of leaves, which are darker below."""
    rng, colour, pose = scene.rng, scene.pick(_LEAF), (x, z, _ACROSS)
    height = rng.uniform(4.5, 8) if rng.random() < .6 else 1.2
    crown = min(height, rng.uniform(3, 4.4))
    y = height - crown / 2
    scene.patch(pose, _bar((0, 0), (0, y), .35), (50, 65, 80), 'vegetation')
    for u, v, size, light in rng.uniform((-1, -1, .1, .75), (1, 1, .23, 1.1), (60, 4)):
        leaves = _disc(u * np.sqrt(1 - .8 * v * v) * crown * .45, y + v * crown * .45, size * crown)
        scene.patch(pose, leaves, colour * (light + .25 * v), 'vegetation')


def _post(scene: _Scene, kind: str, x: float, z: float) -> None:
    """Paints a pole, and what it carries."""
    rng, pose = scene.rng, (x, z, _ACROSS)
    y = rng.uniform(5, 7.5) if kind == 'pole' else rng.uniform(2.2, 3)
    scene.patch(pose, _bar((0, 0), (0, y), .17), scene.pick((_STEEL,), 5), 'pole')
    if kind == 'traffic light':
        scene.patch(pose, _rect(-.26, y, .26, y + 1.3), _DARK, kind)
        lit = rng.integers(3)
        scene.patch(pose, _disc(0, y + .25 + .4 * lit, .17),
                    ((90, 230, 60), (40, 190, 250), (40, 40, 250))[lit])
    elif kind == 'traffic sign':
        corners, rim, face = ((3, _RED, _WHITE), (18, _RED, _WHITE), (18, _WHITE, _BLUE),
                              (8, _WHITE, _RED), (4, _WHITE, _YELLOW))[rng.integers(5)]
        scene.patch(pose, _disc(0, y, .46, corners=corners), rim, kind)
        scene.patch(pose, _disc(0, y, .33, corners=corners), face)


def _vehicle(scene: _Scene, name: str, pose: Pose, length: float) -> None:
    width, palette, boxes = _VEHICLES[name]
    colour = scene.pick(palette)
    # The far end comes first, and what stands on another box last.
    for shares, heights, taper, windows in sorted(
            boxes, key=lambda box: (box[1][0] > .6, -sum(box[0]) * np.cos(pose[2]))):
        wheel = min(.5, heights[0]) if heights[0] <= .6 else 0
        scene.box(name, pose, length * np.array(shares), width, heights, colour, taper, windows,
                  wheel)


def _figure(scene: _Scene, name: str, pose: Pose, hip: Any, hand: Any, feet: Any,
            size: float = 1) -> None:
    """Paints a pedestrian or a rider, from the places of hip, hand and feet."""
    coat, trousers, hair = (scene.pick(_PAINT) * .7 for _ in range(3))
    shoulder_u, shoulder_v = shoulder = hip[0] + (hand[0] - hip[0]) / 4, hip[1] + .52
    for points, colour in (
            *((_bar(hip, foot, .2), trousers) for foot in feet), (_bar(hip, shoulder, .44), coat),
            (_bar(shoulder, hand, .13), coat * .75),
            (_disc(shoulder_u, shoulder_v + .26, .14), hair),
            (_disc(shoulder_u + .04, shoulder_v + .17, .11), _SKIN)):
        scene.patch(pose, size * points, colour, name)


def _person(scene: _Scene, x: float, z: float) -> None:
    pose, stride = (x, z, _ACROSS * scene.rng.choice([-1, 1])), scene.rng.uniform(.03, .3)
    _figure(scene, 'person', pose, (0, .92), (scene.rng.uniform(-.25, .25), .85),
            ((-stride, 0), (stride, 0)), scene.rng.choice([.7, .95, 1, 1.05, 1.1]))


def _two_wheeler(scene: _Scene, name: str, pose: Pose) -> None:
    radius, base, thickness = _TWO_WHEELERS[name]
    colour, rear, front = scene.pick(_PAINT), (-base / 2, radius), (base / 2, radius)
    for hub, _ in (rear, front):  # The label covers the whole wheel, the gaps too.
        scene.patch(pose, _disc(hub, radius, radius), _DARK, name)
        scene.patch(pose, _disc(hub, radius, radius * (.8 - thickness)), (130, 130, 130))
    seat, crank, head = (-.25, .88), (-.05, .32), (.38, 1)
    for start, end in ((rear, seat), (rear, crank), (crank, seat), (crank, head), (seat, head),
                       (head, front)):
        scene.patch(pose, _bar(start, end, thickness), colour, name)
    _figure(scene, 'rider', pose, (-.25, .98), (.4, 1.1), ((0, .3),))


def _roadside(scene: _Scene, kerb: float, outer: float, frontage: float, outward: int) -> None:
    """Places what stands beside the road on one side, from the kerb to the houses."""
    rng, z, houses = scene.rng, scene.rng.uniform(-8, 0), []
    while z < 90:
        start, z = max(z, _NEAR), z + rng.uniform(8, 18)
        if rng.random() < .85:
            houses.append((frontage + outward * rng.uniform(7, 8.5), start, z - start))
    for x, start, length in houses[::-1]:
        height = rng.uniform(6, 20)
        scene.box('building', (x, start, 0), (0, length), 14, (0, height), scene.pick(_FACADE),
                  windows=(rng.uniform(2.4, 3.6), int(height / 3), .03, .97))
    for name, x, windows in (('wall', outer + outward * .4, None),
                             ('fence', outer + outward * .2, (.5, 1, .1, .8))):
        if rng.random() < .55:
            start, height, colour = rng.uniform(3, 16), rng.uniform(1, 1.9), scene.pick(_FACADE)
            for z in np.arange(start, start + rng.uniform(8, 20), 2):
                scene.later(outer, z, _Scene.box, name, (x, z, 0), (0, 2), .2, (0, height), colour,
                            0, windows)
    for draw, mean, near, x0, x1 in (
            (_plant, 3, 6, outer, frontage), (partial(_post, kind='pole'), .9, 7, kerb, kerb),
            (partial(_post, kind='traffic light'), .9, 7, kerb, kerb),
            (partial(_post, kind='traffic sign'), 1, 6, kerb, kerb), (_person, 2, 6, kerb, outer)):
        for _ in range(rng.poisson(mean)):
            z = near + rng.gamma(2, 5)
            x = x0 + (x1 - x0) * rng.random() + outward * .6
            scene.later(x0, z, partial(draw, x=x, z=z))
    for name in _TWO_WHEELERS:
        if rng.random() < .5:  # It rides along the kerb, turned: exactly from behind it is a line.
            z, turn = rng.uniform(6, 15), rng.choice([-1, 1]) * rng.uniform(.35, 1.2)
            scene.later(kerb, z, _two_wheeler, name, (kerb - outward * .5, z, turn))


def _traffic(scene: _Scene, road: tuple[float, float]) -> None:
    rng, lanes = scene.rng, np.arange(road[0] + _LANE / 2, road[1], _LANE)
    free = {x: rng.uniform(9, 14) if abs(x) < 1 else rng.uniform(5, 9) for x in lanes}
    large = (('truck', 7.5), ('bus', 11.0), ('train', 15.0))
    vehicles = [large[i] for i in rng.permutation(3)[:rng.integers(1, 4)]]
    vehicles += [('car', rng.uniform(3.9, 4.8)) for _ in range(rng.integers(2, 6))]
    for i in rng.permutation(len(vehicles)):
        (name, length), x = vehicles[i], rng.choice(lanes)
        z, free[x] = free[x], free[x] + length + rng.uniform(2, 9)
        yaw = rng.normal(0, .06) + np.pi * (x < -1)  # Traffic keeps to the right.
        scene.later(x, z, _vehicle, name, (x, z + length / 2, yaw), length)


def _bonnet(scene: _Scene) -> None:
    rng, (height, width) = scene.rng, scene.size
    centre, colour = (int(width * rng.uniform(.45, .55)), height), scene.pick(_PAINT)
    axes = np.array((width, height)) * rng.uniform((.42, .07), (.6, .12))
    cv2.ellipse(scene.image, centre, axes.astype(int).tolist(), 0, 0, 360, colour.tolist(), -1)
    cv2.ellipse(scene.label, centre, axes.astype(int).tolist(), 0, 0, 360, _IDS['ego vehicle'], -1)


def _photograph(scene: _Scene) -> Array:
    """Adds texture, light, lens and sensor, so that colour alone tells no class."""
    rng, (height, width) = scene.rng, scene.size
    contrast = np.zeros((256, 2), np.float32)
    for name, label_id in _IDS.items():
        contrast[label_id] = _TEXTURE.get(name, (.02, .04))
    light = (rng.uniform(.75, 1.15) * rng.normal(1, .04, 3)).astype(np.float32)
    blur, noise = height / 256 * rng.uniform(.4, .8), float(rng.uniform(2, 6))
    texture: Array = np.ones(scene.size, np.float32)
    for i, grid in enumerate(((160, 320), (16, 32))):
        grain: Array = cv2.resize(rng.standard_normal(grid, np.float32), (width, height),
                                  interpolation=cv2.INTER_CUBIC)
        texture += contrast[scene.label, i] * grain
    image: Array = cv2.GaussianBlur(scene.image * (texture[..., None] * light), (0, 0), blur)
    image = image + noise * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def _paint(rng: Generator, size: tuple[int, int]) -> tuple[Array, Array]:
    """Paints one scene; returns the image and the official label ids."""
    scene = _Scene(rng, size)
    road = rng.choice([-1.5, -2.5]) * _LANE, rng.choice([.5, 1.5]) * _LANE + rng.uniform(.3, 1)
    walks = np.array(road) + (-1, 1) * rng.uniform(2.5, 4.5, 2)
    _ground_and_sky(scene, road, walks)
    for kerb, outer, outward in zip(road, walks, (-1, 1), strict=True):
        _roadside(scene, kerb, outer, outer + outward * rng.uniform(1.5, 9), outward)
    _traffic(scene, road)
    for *_, draw in sorted(scene.objects, key=lambda item: (-item[0], -item[1])):
        draw()
    _bonnet(scene)
    return _photograph(scene), scene.label


def draw_scene(rng: Generator, size: tuple[int, int] = (256, 512)) -> tuple[Array, Array]:
    """Draws one street scene.

    The layout depends on ``rng`` only: a generator in the same state draws the same scene, apart
    from the sensor noise, at every size of the same aspect ratio.

    Args:
        rng: The only source of randomness.
        size: (height, width) in pixels, at least 64 each.

    Returns:
        The image, uint8 BGR (H, W, 3), and its labels, uint8 (H, W): Cityscapes train ids 0 to 18,
        and 255 for what is not evaluated, the bonnet of the own car.
    """
    image, label_ids = _paint(rng, size)
    return image, _TRAIN_IDS[label_ids]


def make_toy_cityscapes(root: str | PathLike, num_train: int = 64, num_val: int = 16,
                        size: tuple[int, int] = (256, 512), seed: int = 0) -> Path:
    """Writes a toy Cityscapes that MMSegmentation's ``CityscapesDataset`` reads as it is.

    An image depends on ``seed``, its split and its number only, so that a larger set begins with
    the smaller one. Every class occurs in about half of the images or more: a split of very few
    images may lack one. What an earlier call wrote into ``root`` is replaced.

    Args:
        root: The folder that receives ``leftImg8bit/``, ``gtFine/`` with label ids and train ids,
            and a marker file, ``toy_cityscapes.json``, with the arguments.
        num_train: Number of images of the split ``train``, all from the city of ``toyville``.
        num_val: Number of images of the split ``val``, all from ``toyburg``.
        size: (height, width) in pixels, at least 64 each.
        seed: Not negative.

    Returns:
        ``root`` as a path.

    Raises:
        ValueError: If a number is out of range; nothing is written then.
        FileExistsError: If ``root`` holds something else, such as the real Cityscapes.
    """
    root, (height, width) = Path(root), size
    if min(num_train, num_val) < 1 or min(height, width) < 64 or seed < 0:
        raise ValueError(
            'expected at least 1 image per split, a size (height, width) of at least (64, 64) and '
            f'a seed of at least 0, got {num_train=}, {num_val=}, {size=}, {seed=}')
    marker, counts = root / MARKER, {'train': num_train, 'val': num_val}
    if root.exists() and not marker.exists() and any(root.iterdir()):
        raise FileExistsError(
            f'{root} is not empty and has no {MARKER}, so it was not made by this tool; choose '
            'another folder, or empty this one yourself')
    root.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({**counts, 'size': [height, width], 'seed': seed}) + '\n')
    for split, city in CITIES.items():
        folders = [root / kind / split / city for kind in ('leftImg8bit', 'gtFine')]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for i in range(counts[split]):
            rng = np.random.default_rng([seed, list(CITIES).index(split), i])
            image, label_ids = _paint(rng, (height, width))
            stem = f'{city}_{i:06d}_000019'
            for path, pixels in (
                    (folders[0] / f'{stem}_leftImg8bit.png', image),
                    (folders[1] / f'{stem}_gtFine_labelIds.png', label_ids),
                    (folders[1] / f'{stem}_gtFine_labelTrainIds.png', _TRAIN_IDS[label_ids])):
                if not cv2.imwrite(str(path), pixels):
                    raise OSError(f'{path}: OpenCV could not write it; is the disk full?')
    return root
