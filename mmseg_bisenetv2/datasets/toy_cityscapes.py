"""A procedural toy Cityscapes: cartoon street scenes in the folder layout of the real data set.

It stands in where the real images, which may not be passed on, are not at hand: first training
runs, tests, benchmarks. A pinhole camera looks down a street on flat ground; X points right, Y up
from the ground, Z forward, in metres. Every object is painted, from far to near, with the same
polygons into the image and into the label map, so that sizes and occlusions follow from depth.
"""
import json
import shutil
from functools import partial
from os import PathLike
from pathlib import Path

import cv2
import numpy as np

from mmseg_bisenetv2.datasets.label_ids import LABEL_IDS

CITIES = {'train': 'toyville', 'val': 'toyburg'}
MARKER = 'toy_cityscapes.json'

_IDS = LABEL_IDS | {'ego vehicle': 1, 'static': 4}  # these two are not evaluated
_TRAIN_IDS = np.full(256, 255, np.uint8)
_TRAIN_IDS[list(LABEL_IDS.values())] = np.arange(len(LABEL_IDS))

_NEAR, _FAR, _LANE = 1.2, 160.0, 3.4  # m
_ACROSS = np.pi / 2  # yaw of what faces the camera; yaw 0 heads away from it
# Contrast of the surface texture, fine and coarse, relative to the colour.
_TEXTURE = {
    'road': (.04, .05), 'sidewalk': (.06, .06), 'building': (.04, .08), 'wall': (.10, .10),
    'vegetation': (.16, .12), 'terrain': (.14, .15), 'sky': (0, 0), 'ego vehicle': (0, 0)}
_TEXTURE_ELSE = (.02, .04)

# Colours are BGR.
_GLASS, _DARK, _STEEL, _WHITE = (95, 80, 65), (35, 33, 32), (110, 110, 108), (235, 235, 235)
_RED, _YELLOW, _BLUE, _GREEN = (40, 35, 200), (50, 200, 235), (170, 90, 30), (90, 150, 70)
_AMBER, _SKIN, _LEAF = (40, 150, 240), (120, 155, 205), ((60, 110, 70), (45, 95, 85), (70, 130, 90))
_PAINT = ((40, 40, 45), (225, 225, 225), (170, 170, 175), (110, 105, 100), (40, 40, 170),
          (140, 70, 30), (60, 110, 60), (70, 170, 210), (90, 60, 60))
_FACADE = ((150, 190, 215), (120, 150, 175), (80, 95, 150), (165, 165, 165), (205, 215, 220),
           (110, 125, 140), (150, 130, 120), (125, 175, 185))
_CLOTH = ((60, 50, 45), (110, 70, 40), (50, 50, 150), (190, 190, 190), (70, 110, 60),
          (40, 130, 190), (130, 60, 110), (30, 30, 30))


def _rect(u0, v0, u1, v1):
    return np.array([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], float)


def _disc(u, v, radius, radius_v=None, corners=18):
    turn = np.arange(corners) * 2 * np.pi / corners
    return np.stack([u + radius * np.sin(turn), v + (radius_v or radius) * np.cos(turn)], -1)


def _bar(start, end, thickness):
    start, end = np.array(start, float), np.array(end, float)
    along = (end - start) / np.linalg.norm(end - start)
    aside = np.array([-along[1], along[0]]) * thickness / 2
    return np.stack([start - aside, start + aside, end + aside, end - aside])


def _grid(columns, rows, gap, u0=0.0, v0=0.0, u1=1.0, v1=1.0):
    """``columns * rows`` rectangles that tile a box with gaps between them, (N, 4, 2)."""
    cells = np.indices((columns, rows)).reshape(2, -1).T[:, None]
    cells = cells + _rect(gap, gap, 1 - gap, 1 - gap)
    return cells / (columns, rows) * (u1 - u0, v1 - v0) + (u0, v0)


def _on_quad(quad, uv):
    """Maps ``uv`` in [0, 1]^2 onto a quad with the corners (0, 0), (1, 0), (1, 1), (0, 1)."""
    u, v = uv[..., :1], uv[..., 1:]
    return (1 - v) * ((1 - u) * quad[0] + u * quad[1]) + v * ((1 - u) * quad[3] + u * quad[2])


class _Scene:
    """Image and label map of one scene, and the camera that projects into both."""

    def __init__(self, rng, size):
        height, width = size
        self.rng, self.size = rng, size
        self.image, self.label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
        self.focal = height * rng.uniform(1.15, 1.35)
        self.centre, self.horizon = width * rng.uniform(.44, .56), height * rng.uniform(.4, .48)
        self.eye = np.array([0, rng.uniform(1.3, 1.6), 0])
        self.bend = rng.uniform(-.0025, .0025)  # 1/m; the street is sheared by bend * Z^2
        self.sun = rng.normal(size=3) / 1.7
        self.haze, self.objects = np.zeros(3), []

    def pick(self, palette, jitter=14):
        colour = np.array(palette[self.rng.integers(len(palette))], float)
        colour = colour * self.rng.uniform(.8, 1.15) + self.rng.normal(0, jitter, 3)
        return np.clip(colour, 10, 245)

    def project(self, points):
        """Pixels, with 4 fractional bits, of polygons (N, 3) or (M, N, 3)."""
        x, y, z = points[..., 0], points[..., 1], np.maximum(points[..., 2], _NEAR)
        pixels = np.empty((*points.shape[:-1], 2))
        pixels[..., 0] = self.centre + self.focal * (x / z + self.bend * z)
        pixels[..., 1] = self.horizon + self.focal * (self.eye[1] - y) / z
        pixels = np.rint(pixels * 16).astype(np.int32)
        return pixels if pixels.ndim == 3 else pixels[None]

    def through_air(self, colour, z):
        """What ``colour`` looks like from ``z`` metres away, as OpenCV wants it."""
        clear = np.exp(-z / 300)
        return np.clip(clear * np.asarray(colour) + (1 - clear) * self.haze, 0, 255).tolist()

    def fill(self, points, colour=None, name=None):
        """Paints polygons into the image, the label map or both; pairs that overlap make holes."""
        pixels = self.project(points)
        if colour is not None:
            colour = self.through_air(colour, points[..., 2].min())
            cv2.fillPoly(self.image, pixels, colour, shift=4)
        if name is not None:
            cv2.fillPoly(self.label, pixels, _IDS[name], shift=4)

    def world(self, pose, along, across, y):
        """World points of an object at ``pose``, (x, z, yaw)."""
        (x, z, yaw), y = pose, y + 0 * along
        sin, cos = np.sin(yaw), np.cos(yaw)
        return np.stack([x + along * sin + across * cos, y, z + along * cos - across * sin], -1)

    def patch(self, pose, points, colour=None, name=None):
        """Paints polygons of the upright plane along ``pose``, given as (along, height)."""
        points = np.asarray(points, float)
        self.fill(self.world(pose, points[..., 0], 0, points[..., 1]), colour, name)

    def shadow(self, pose, length, width):
        pixels = self.project(self.world(pose, *_disc(0, 0, length * .56, width * .62).T, 0))
        mask = cv2.fillPoly(np.zeros(self.size, np.uint8), pixels, 1, shift=4) > 0
        self.image[mask] = self.image[mask] * .6

    def box(self, name, pose, along, width, heights, colour, taper=(0, 0, 0), decals=None):
        """Paints the visible faces of a box whose top is drawn in by ``taper`` (rear, front, side).

        ``decals`` gives a face ('rear', 'front', 'side') polygons in its own [0, 1]^2, and colours.
        """
        corners = []
        for y, (rear, front, side) in zip(heights, ((0, 0, 0), taper), strict=True):
            r, f, s = along[0] + rear, along[1] - front, width / 2 - side
            corners.append(self.world(pose, np.array([r, r, f, f]), np.array([-s, s, s, -s]), y))
        b, t = corners
        for i, face in enumerate(('rear', 'side', 'front', 'side', 'top')):
            j = (i + 1) % 4
            quad = t if face == 'top' else np.stack([b[i], b[j], t[j], t[i]])
            inward = np.cross(quad[1] - quad[0], quad[3] - quad[0])
            inward /= np.linalg.norm(inward)
            if inward @ (quad.mean(0) - self.eye) <= 0:
                continue  # turned away from the camera
            light = .86 - .14 * inward[1] - .1 * inward @ self.sun
            self.fill(quad, np.asarray(colour) * light, name)
            for uv, decal in (decals or {}).get(face, ()):
                self.fill(_on_quad(quad, uv), np.asarray(decal) * light, name)

    def later(self, band, z, draw, *args):
        """Queues an object that is at least ``|band|`` metres aside and begins at depth ``z``.

        No object can be hidden by one that stands farther aside, however near that one is: depth
        decides only between objects of the same band.
        """
        self.objects.append((abs(band), z, partial(draw, self, *args)))


# The street


def _sky(scene):
    rng, (height, width) = scene.rng, scene.size
    skies = (((200, 140, 80), (235, 215, 190)), ((195, 190, 185), (225, 222, 220)),
             ((150, 120, 110), (150, 190, 235)))  # clear, overcast, evening
    zenith, scene.haze = np.array(skies[rng.integers(3)], float)
    ramp = np.clip(np.arange(height) / scene.horizon, 0, 1)[:, None, None]
    sky = np.float32((1 - ramp) * zenith + ramp * scene.haze)
    clouds = rng.random((6, 9), np.float32)
    clouds = cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    cover = np.clip(2 * clouds - np.float32(rng.uniform(.6, 1.6)), 0, np.float32(.7))
    scene.image[:], scene.label[:] = sky + cover * (240 - sky), _IDS['sky']


def _strip(scene, x0, x1, colour, name=None, z0=_NEAR, z1=_FAR):
    """A band of ground along the street, in short steps because the street bends."""
    z = np.geomspace(z0, z1, 16 if z1 > 2 * z0 else 2)
    left, right = (np.stack([x + 0 * z, 0 * z, z], -1) for x in (x0, x1))
    scene.fill(np.concatenate([left, right[::-1]]), colour, name)


def _ground(scene, road, walks):
    rng, below = scene.rng, slice(int(scene.horizon), None)
    grass = scene.pick(((70, 120, 95), (60, 100, 110), (75, 110, 75)))
    scene.image[below], scene.label[below] = grass, _IDS['terrain']
    x, y = np.linspace(-200, 200, 42), np.pad(rng.uniform(3, 10, 40), 1)
    scene.fill(np.stack([x, y, 0 * x + _FAR], -1), scene.pick(_LEAF), 'vegetation')
    asphalt = rng.uniform(75, 130) + rng.normal(0, 4, 3)
    paving = asphalt * rng.uniform(1.05, 1.4) + rng.normal(0, 8, 3)
    for kerb, outer in zip(road, walks, strict=True):
        _strip(scene, kerb, outer, paving, 'sidewalk')
        for z in np.arange(3, 30, 1.5):  # joints between the slabs
            _strip(scene, kerb, outer, paving * .88, None, z, z + .05 + z * .004)
        if rng.random() < .5:  # a planted strip
            _strip(scene, kerb, kerb + .4 * (outer - kerb), grass, 'terrain')
        _strip(scene, kerb - .12, kerb + .12, paving * 1.2, 'sidewalk')
    _strip(scene, *road, asphalt, 'road')
    marks = [(x, x + .18, z, z + 3) for x in np.arange(road[0] + _LANE, road[1] - 1, _LANE) - .09
             for z in np.arange(rng.uniform(2, 8), 90, 7)]
    if rng.random() < .4:  # a zebra crossing
        z = rng.uniform(5, 14)
        marks += [(x, x + .5, z, z + 2.5) for x in np.arange(road[0] + .5, road[1] - .5)]
    for x0, x1, z0, z1 in marks:
        _strip(scene, x0, x1, (215, 220, 220), None, z0, z1)


def _building(scene, x, z0, z1, outward):
    rng = scene.rng
    height, colour, shop = rng.uniform(6, 20), scene.pick(_FACADE), scene.pick(_PAINT)
    storeys, pane, gap = int(height / 3), rng.uniform(2.4, 3.6), rng.uniform(.2, .32)
    frame, glass = colour * rng.choice([.75, 1.25]), scene.pick((_GLASS, (130, 115, 100)))
    # The gable, then the front along the street.
    for light, width, x1, z2 in ((.82, 14, x + outward * 14, z0), (1, z1 - z0, x, z1)):
        quad = np.array([(x, 0, z0), (x1, 0, z2), (x1, height, z2), (x, height, z0)])
        columns, inside = max(2, int(width / pane)), (.02, 1 / storeys, .98, .97)
        windows = _grid(columns, storeys - 1, gap, *inside)
        scene.fill(quad, colour * light, 'building')
        for uv, paint in (
                (_grid(columns, storeys - 1, gap - .06, *inside), frame * light),
                (windows, glass * light),
                (windows[rng.random(len(windows)) < .15], (150, 205, 225)),  # lit
                (_rect(0, 0, 1, .9 / storeys), shop * light),
                (_grid(columns, 1, .1, 0, 0, 1, .75 / storeys), glass * light * .8),
                (_rect(0, .97, 1, 1), frame * light)):
            if len(uv):
                scene.fill(_on_quad(quad, uv), paint)


def _barrier(scene, name, x, z0, z1, height, colour):
    """A piece of wall or fence along the street."""
    quad = np.array([(x, 0, z0), (x, 0, z1), (x, height, z1), (x, height, z0)])
    if name == 'wall':
        scene.fill(quad, colour, name)
        courses, thickness = np.arange(1, 6) / 6, .03
    else:  # labelled without its holes, as the annotators of Cityscapes do
        scene.fill(quad, None, name)
        scene.fill(_on_quad(quad, _grid(7, 1, .27)), colour)
        courses, thickness = (.16, .8), .09
    for v in courses:
        scene.fill(_on_quad(quad, _rect(0, v, 1, v + thickness)), colour * .8)


def _plant(scene, x, z, height, crown):
    """A tree or, with a crown as high as itself, a bush: clumps of leaves, darker below."""
    colour, pose, y = scene.pick(_LEAF), (x, z, _ACROSS), height - crown / 2
    if crown < height:
        scene.patch(pose, _bar((0, 0), (0, y), .35), (50, 65, 80), 'vegetation')
    u, v, size, light = scene.rng.uniform((-1, -1, .1, .75), (1, 1, .23, 1.1), (60, 4)).T
    u *= np.sqrt(1 - .8 * v * v)
    centres = scene.project(scene.world(pose, u * crown * .45, 0, y + v * crown * .45))[0]
    radii = np.rint(size * crown * scene.focal / z * 16).astype(int)
    for centre, radius, shade in zip(centres, radii, light + .25 * v, strict=True):
        clump = centre.tolist(), int(radius)
        cv2.circle(scene.image, *clump, scene.through_air(colour * shade, z), -1, shift=4)
        cv2.circle(scene.label, *clump, _IDS['vegetation'], -1, shift=4)


def _pole(scene, x, z, height, reach=0.0):
    """A pole with an arm over the road; returns its pose and the end of the arm."""
    pose, colour, end = (x, z, _ACROSS), scene.pick((_STEEL,), 5), -np.sign(x) * reach
    scene.patch(pose, _bar((0, 0), (0, height), .17), colour, 'pole')
    if reach:
        scene.patch(pose, _bar((0, height - .1), (end, height), .14), colour, 'pole')
    return pose, end


def _traffic_light(scene, x, z):
    y, lit = scene.rng.uniform(2.4, 3.4), scene.rng.integers(3)
    pose, end = _pole(scene, x, z, y + 1, scene.rng.choice([0, 0, 1.4]))
    scene.patch(pose, _rect(end - .26, y, end + .26, y + 1.3), _DARK, 'traffic light')
    for i, colour in enumerate(((90, 230, 60), (40, 190, 250), (40, 40, 250))):
        lamp = np.array(colour) * (1 if i == lit else .25)
        scene.patch(pose, _disc(end, y + .25 + .4 * i, .17), lamp)


def _traffic_sign(scene, x, z):
    corners, rim, face = ((3, _RED, _WHITE), (18, _RED, _WHITE), (18, _BLUE, _BLUE),
                          (8, _RED, _RED), (4, _WHITE, _YELLOW))[scene.rng.integers(5)]
    y, radius = scene.rng.uniform(2, 2.8), scene.rng.uniform(.38, .5)
    pose, _ = _pole(scene, x, z, y)
    scene.patch(pose, _disc(0, y, radius, corners=corners), rim, 'traffic sign')
    scene.patch(pose, _disc(0, y, radius * .72, corners=corners), face)
    scene.patch(pose, _rect(-.2, y - .07, .2, y + .07), _WHITE if face == rim else _DARK)
    if scene.rng.random() < .5:  # a plate below
        plate, colour = _rect(-.35, y - 1, .35, y - .55), scene.pick((_WHITE, _BLUE))
        scene.patch(pose, plate, colour, 'traffic sign')


def _bin(scene, x, z):
    half, height = scene.rng.uniform((.25, .8), (.45, 1.3))
    scene.shadow((x, z, 0), 2 * half, 2 * half)
    scene.box('static', (x, z, .3), (-half, half), 2 * half, (0, height), scene.pick(_PAINT))


# Road users


def _wheels(length, height, radius, *positions):
    """Tyres and rims on the side, ``length`` by ``height``, of a box."""
    return [(_disc(u, 0, r / length, r / height), colour) for u in positions
            for r, colour in ((radius, _DARK), (radius / 2, (150, 150, 150)))]


def _lights(colour, v0, v1):
    return [(_rect(u, v0, u + .17, v1), colour) for u in (.04, .79)]


def _car(scene, pose, length):
    half, colour, glass = length / 2, scene.pick(_PAINT), scene.pick((_GLASS, (150, 140, 125)), 5)
    width, roof, boot = scene.rng.uniform((1.7, 1.4, .1), (1.95, 1.75, .9))
    bumper, window = (_rect(0, 0, 1, .2), _DARK), [(_rect(.06, .08, .94, .84), glass)]
    scene.shadow(pose, length, width)
    scene.box('car', pose, (-half, half), width, (.3, .92), colour, (.05, .15, .03), {
        'side': _wheels(length, .62, .34, .19, .81),
        'rear': [*_lights(_RED, .45, .75), bumper, (_rect(.36, .28, .64, .46), _WHITE)],
        'front': [*_lights(_WHITE, .45, .75), bumper, (_rect(.25, .3, .75, .55), _DARK)]})
    cabin = {'rear': window, 'front': window, 'side': [(_grid(2, 1, .08), glass)]}
    scene.box('car', pose, (boot - half, half * .45), width - .1, (.92, roof), colour,
              (.3, .65, .16), cabin)


def _truck(scene, pose, length):
    half, cargo, stripe = length / 2, scene.pick((*_PAINT, _WHITE)), scene.rng.uniform(.2, .6)
    back = half - 2.2  # of the cab
    parts = [
        ((back + .2, half), 2.3, (.5, 2.5), scene.pick(_PAINT), (0, .3, .1), {
            'front': [(_rect(.07, .5, .93, .9), _GLASS), *_lights(_WHITE, .12, .25),
                      (_rect(0, 0, 1, .1), _DARK), (_rect(.25, .2, .75, .4), _DARK)],
            'side': [(_rect(.3, .5, .85, .88), _GLASS), *_wheels(2, 2, .5, .5)]}),
        ((-half, back), 2.4, (.95, scene.rng.uniform(2.9, 3.6)), cargo, (0, 0, 0), {
            'rear': [(_rect(.49, 0, .51, 1), cargo * .6), (_rect(0, .95, 1, 1), cargo * .7)],
            'side': [(_rect(0, stripe, 1, stripe + .2), scene.pick(_PAINT))]}),
        ((-half + .2, back), 2.1, (.5, .95), _DARK, (0, 0, 0), {
            'rear': _lights(_RED, .3, .8), 'side': _wheels(back + half, .45, .5, .2, .42)})]
    scene.shadow(pose, length, 2.4)
    for part in parts if np.cos(pose[2]) > 0 else parts[::-1]:  # the far end first
        scene.box('truck', pose, *part)


def _bus(scene, pose, length):
    colour = scene.pick((_YELLOW, _RED, (225, 225, 225), _BLUE, _GREEN))
    both = [(_rect(.2, .87, .8, .96), _AMBER), (_rect(0, 0, 1, .08), _DARK)]
    scene.shadow(pose, length, 2.5)
    scene.box('bus', pose, (-length / 2, length / 2), 2.5, (.4, 3.1), colour, (.05, .1, .06), {
        'rear': [*both, (_rect(.1, .5, .9, .82), _GLASS), *_lights(_RED, .15, .3),
                 (_rect(.25, .12, .75, .4), colour * .75)],
        'front': [*both, (_rect(.04, .32, .96, .84), _GLASS), *_lights(_WHITE, .1, .2)],
        'side': [(_grid(6, 1, .06, .01, .46, .99, .84), _GLASS),
                 (_rect(0, .36, 1, .42), colour * .6), *_wheels(length, 2.7, .5, .2, .8)]})


def _train(scene, pose, length):
    """A tram of two cars with a bright skirt, and its pantograph."""
    colour = scene.pick(((215, 225, 230), (80, 200, 235), (190, 200, 190)))
    skirt, band = (_rect(0, 0, 1, .33), scene.pick((_RED, _BLUE, _GREEN))), _rect(0, .42, 1, .8)
    end = [skirt, (_rect(.12, .42, .88, .86), _GLASS), (_disc(.5, .2, .07, .06), _WHITE),
           (_rect(.25, .89, .75, .97), _AMBER)]
    side = [skirt, (band, _DARK), (_grid(4, 1, .05, .02, .45, .98, .77), (125, 105, 85))]
    cars = [((.15, length / 2), (0, .5, .12)), ((-length / 2, -.15), (.5, 0, .12))]
    scene.shadow(pose, length, 2.5)
    for along, taper in cars if np.cos(pose[2]) > 0 else cars[::-1]:
        scene.box('train', pose, along, 2.5, (.2, 3.3), colour, taper,
                  {'rear': end, 'front': end, 'side': side})
    for bar in (((-1, 3.3), (-.2, 4.2)), ((-.2, 4.2), (-1, 5)), ((-1.6, 5), (-.4, 5))):
        scene.patch((*pose[:2], pose[2] + .7), _bar(*bar, .12), _DARK, 'train')


def _person(scene, x, z):
    rng, pose = scene.rng, (x, z, _ACROSS * scene.rng.choice([-1, 1]))
    size = rng.uniform(.93, 1.1) if rng.random() < .85 else rng.uniform(.6, .75)  # or a child
    coat, trousers, hem = scene.pick(_CLOTH), scene.pick(_CLOTH), rng.choice([.85, .55])
    stride, w, hand = rng.uniform((.03, .2, -.25), (.3, .27, .25))
    torso = [(-w, hem), (w, hem), (w, 1.42), (.08, 1.5), (-.08, 1.5), (-w, 1.42)]
    scene.shadow((x, z, 0), .5 * size, .7 * size)
    for points, colour in (
            (_bar((.02, .95), (-stride, 0), .2), trousers * .8),
            (_bar((.02, .95), (stride, 0), .2), trousers),
            (np.array(torso), coat),
            (_bar((0, 1.4), (hand, .85), .13), coat * .75),
            (_disc(0, 1.62, .13, .15), scene.pick(_CLOTH) * .6),  # hair
            (_disc(.03, 1.6, .1, .13), scene.pick((_SKIN, (70, 95, 140)), 5))):
        scene.patch(pose, size * points, colour, 'person')


def _rider(scene, pose, hip, hand, foot):
    hip, hand, foot = np.array((hip, hand, foot))
    coat, trousers = scene.pick(_CLOTH), scene.pick(_CLOTH)
    shoulder, knee = (hip + hand) / 2 + (-.08, .5), (hip + foot) / 2 + (.25, .1)
    for points, colour in (
            (_bar(hip, knee, .22), trousers), (_bar(knee, foot, .18), trousers),
            (_bar(hip, shoulder, .4), coat), (_bar(shoulder, hand, .14), coat * .8),
            (_disc(*shoulder + (.06, .22), .14, .16), _SKIN),
            (_disc(*shoulder + (.04, .28), .16, .13), scene.pick(_PAINT))):  # helmet
        scene.patch(pose, points, colour, 'rider')


def _two_wheeler(scene, name, pose, radius, base, tyre, parts):
    """Shadow, wheels, and ``parts`` as pairs of polygon and colour."""
    scene.shadow(pose, base + 2 * radius, .5)
    for hub in (-base / 2, base / 2):
        rim = _disc(hub, radius, radius)
        scene.patch(pose, rim, None, name)  # labelled without the holes between the spokes
        scene.patch(pose, [rim, _disc(hub, radius, radius - tyre)], _DARK)
    for points, colour in parts:
        scene.patch(pose, points, colour, name)


def _bicycle(scene, pose, ridden):
    colour = scene.pick((_RED, _BLUE, _DARK, _GREEN, (190, 190, 190)))
    rear, front, crank, seat, head = (-.53, .36), (.53, .36), (-.05, .3), (-.2, .9), (.36, .92)
    tubes = ((rear, crank), (rear, seat), (crank, seat), (crank, head), (seat, head), (head, front))
    _two_wheeler(scene, 'bicycle', pose, .36, 1.06, .08, [
        *((_bar(*tube, .08), colour) for tube in tubes),
        (_bar((.3, 1.02), (.5, 1.06), .08), _DARK), (_bar((-.34, .96), (-.06, .96), .1), _DARK)])
    if ridden:
        _rider(scene, pose, (-.2, .98), (.4, 1.06), (.02, .22))


def _motorcycle(scene, pose, ridden):
    colour = scene.pick((_RED, _BLUE, (60, 55, 55), (190, 190, 190), _YELLOW))
    _two_wheeler(scene, 'motorcycle', pose, .34, 1.4, .18, [
        ([(-.6, .4), (.45, .3), (.5, .6), (-.4, .75)], (70, 70, 70)),  # engine
        ([(-.15, .7), (.55, .62), (.45, 1), (0, .95)], colour),  # tank
        ([(-1, .9), (-.85, .7), (0, .7), (0, .85), (-.6, .88)], _DARK),  # seat
        ([(.5, .6), (.72, .8), (.62, 1.15), (.42, 1)], colour),  # fairing
        (_bar((.7, .34), (.45, 1.05), .09), (150, 150, 150)),  # fork
        (_bar((.2, 1.1), (.5, 1.08), .08), _DARK), (_disc(.68, .9, .1), _WHITE)])
    if ridden:
        _rider(scene, pose, (-.4, .92), (.4, 1.12), (-.05, .35))


# The whole


def _roadside(scene, kerb, outer, frontage, outward):
    """Everything beside the road on one side, from the kerb to the houses."""
    rng, z, houses = scene.rng, scene.rng.uniform(-8, 0), []
    while z < 90:
        z0, z = max(z, _NEAR), z + rng.uniform(8, 18)
        if rng.random() < .85:
            houses.append((frontage + outward * rng.uniform(0, 1.5), z0, z, outward))
    for house in houses[::-1]:
        _building(scene, *house)
    for name, x, palette in (
            ('wall', outer + outward * .4, ((140, 150, 160), (100, 115, 165), (150, 150, 150))),
            ('fence', outer + outward * .1, ((60, 60, 60), (70, 100, 130), _STEEL, _GREEN))):
        if rng.random() < .55:
            start, height, colour = rng.uniform(3, 16), rng.uniform(1, 1.9), scene.pick(palette)
            for z in np.arange(start, start + rng.uniform(8, 20), 2):
                scene.later(outer, z, _barrier, name, x, z, z + 2, height, colour)

    def place(draw, mean, near, x0, x1, *low_high):
        for _ in range(rng.poisson(mean)):
            z = near + rng.gamma(2, 5)
            extra = rng.uniform(*low_high) if low_high else ()
            scene.later(x0, z, draw, x0 + (x1 - x0) * rng.random() + outward * .6, z, *extra)

    place(_plant, 2, 8, outer, frontage, (4.5, 3), (8, 4.4))
    place(_plant, 1.5, 5, outer, frontage, (1.2, 1.2), (1.2, 1.2))
    place(_pole, .9, 7, kerb, kerb, (5, 1), (7.5, 2.2))
    place(_traffic_light, .9, 7, kerb, kerb)
    place(_traffic_sign, 1, 6, kerb, kerb)
    place(_bin, .6, 6, kerb, outer)
    place(_person, 2, 6, kerb, outer)
    for draw in (_bicycle, _motorcycle):
        if rng.random() < .3:  # parked on the sidewalk
            z = rng.uniform(6, 14)
            scene.later(kerb, z, draw, (kerb + outward * .8, z, rng.uniform(.3, 1.2)), False)
        if rng.random() < .45:  # rides along the kerb, turned: from behind there is little to see
            z, turn = rng.uniform(6, 15), rng.choice([-1, 1]) * rng.uniform(.35, 1.2)
            scene.later(kerb, z, draw, (kerb - outward * .5, z, turn), True)


def _traffic(scene, road):
    rng, lanes = scene.rng, np.arange(road[0] + _LANE / 2, road[1], _LANE)
    free = {x: rng.uniform(9, 14) if abs(x) < 1 else rng.uniform(5, 9) for x in lanes}
    if rng.random() < .35:  # somebody crosses, in front of all vehicles
        z = rng.uniform(6, 9)
        scene.later(0, z, _person, rng.uniform(*road), z)
        free = {x: max(start, z + 1.5) for x, start in free.items()}
    large = ((_truck, 7.5), (_bus, 11.0), (_train, 15.0))
    vehicles = [large[i] for i in rng.permutation(3)[:rng.integers(1, 4)]]
    vehicles += [(_car, rng.uniform(3.9, 4.8)) for _ in range(rng.integers(2, 6))]
    for i in rng.permutation(len(vehicles)):
        (draw, length), x = vehicles[i], rng.choice(lanes)
        z, free[x] = free[x], free[x] + length + rng.uniform(2, 9)
        yaw = rng.normal(0, .06) + np.pi * (x < -1)  # traffic keeps to the right
        scene.later(x, z, draw, (x, z + length / 2, yaw), length)
        for rail in (x - .75, x + .75) if draw is _train else ():
            _strip(scene, rail - .08, rail + .08, (70, 70, 75))


def _bonnet(scene):
    rng, (height, width) = scene.rng, scene.size
    centre, colour = (int(width * rng.uniform(.45, .55)), height), scene.pick(_PAINT)
    axes = np.array((width, height)) * rng.uniform((.42, .07), (.6, .12))
    for scale, light in ((1, .8), (.93, 1), (.6, 1.1)):
        ellipse = centre, tuple(int(axis) for axis in axes * scale), 0, 0, 360
        cv2.ellipse(scene.image, *ellipse, np.clip(colour * light, 0, 255).tolist(), -1)
        cv2.ellipse(scene.label, *ellipse, _IDS['ego vehicle'], -1)


def _photograph(scene):
    """Adds texture, light, lens and sensor, so that colour alone tells no class."""
    rng, (height, width) = scene.rng, scene.size
    contrast = np.tile(np.float32(_TEXTURE_ELSE), (256, 1))
    for name, value in _TEXTURE.items():
        contrast[_IDS[name]] = value
    light = np.float32(rng.uniform(.75, 1.15) * rng.normal(1, .04, 3))
    blur, noise = height / 256 * rng.uniform(.4, .8), np.float32(rng.uniform(2, 6))
    texture = np.ones(scene.size, np.float32)
    for i, grid in enumerate(((160, 320), (16, 32))):
        grain = rng.standard_normal(grid, np.float32)
        grain = cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)
        texture += contrast[scene.label, i] * grain
    image = cv2.GaussianBlur(scene.image * (texture[..., None] * light), (0, 0), blur)
    image += noise * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def _paint(rng, size):
    """Paints one scene; returns the image and the official label ids."""
    scene = _Scene(rng, size)
    road = rng.choice([-1.5, -2.5]) * _LANE, rng.choice([.5, 1.5]) * _LANE + rng.uniform(.3, 1)
    walks = np.array(road) + (-1, 1) * rng.uniform(2.5, 4.5, 2)
    _sky(scene)
    _ground(scene, road, walks)
    for kerb, outer, outward in zip(road, walks, (-1, 1), strict=True):
        _roadside(scene, kerb, outer, outer + outward * rng.uniform(1.5, 9), outward)
    _traffic(scene, road)
    for *_, draw in sorted(scene.objects, key=lambda item: (-item[0], -item[1])):
        draw()
    _bonnet(scene)
    return _photograph(scene), scene.label


def draw_scene(
        rng: np.random.Generator,
        size: tuple[int, int] = (256, 512)) -> tuple[np.ndarray, np.ndarray]:
    """Draws one street scene.

    The layout depends on ``rng`` only: a generator in the same state draws the same scene, apart
    from the sensor noise, at every size of the same aspect ratio.

    Args:
        rng: The only source of randomness.
        size: (height, width) in pixels, at least 64 each.

    Returns:
        The image, uint8 BGR (H, W, 3), and its labels, uint8 (H, W): Cityscapes train ids 0 to 18,
        and 255 for what is not evaluated (the bonnet of the own car, and bins).
    """
    image, label_ids = _paint(rng, size)
    return image, _TRAIN_IDS[label_ids]


def make_toy_cityscapes(
        root: str | PathLike,
        num_train: int = 64,
        num_val: int = 16,
        size: tuple[int, int] = (256, 512),
        seed: int = 0) -> Path:
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
            if folder.exists():
                shutil.rmtree(folder)
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
