"""Draws scenes: crisp, anti-aliased, in batches, on whatever device the scenes live on.

Each shape is stored once as a signed distance map (negative inside) in its own unit square; an object is that
map looked up at scaled positions, and its coverage of a pixel is half a pixel minus the distance.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

import scenes as S

ATLAS, REACH = 256, 1.4  # map resolution, and the half-width in units of the object's radius that it covers


def polygon(points):
    """Signed distance to a closed polygon, as a function of coordinate arrays."""
    points = np.asarray(points, dtype=np.float64)

    def distance(x, y):
        best, inside = np.full(x.shape, np.inf), np.zeros(x.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0)):
            ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            best = np.minimum(best, np.hypot(px - along * ex, py - along * ey))
            with np.errstate(divide="ignore", invalid="ignore"):
                inside ^= ((ay > y) != (by > y)) & (x < ex * (y - ay) / ey + ax)
        return np.where(inside, -best, best)

    return distance


def on_circle(n, radius=1.0, turn=-math.pi / 2):
    """`n` points on a circle, the first at the top (y grows downwards)."""
    angles = turn + 2 * math.pi * np.arange(n) / n
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def fitted(points):
    """Moved to the middle and scaled until the larger side spans -1..1."""
    points = np.asarray(points, dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) / ((high - low).max() / 2)


def star():
    points = np.empty((10, 2))
    points[0::2] = on_circle(5)
    points[1::2] = on_circle(5, 0.42, -math.pi / 2 + math.pi / 5)
    return polygon(fitted(points))


def heart():
    t = np.linspace(0, 2 * math.pi, 90, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return polygon(fitted(np.stack([x, y], axis=1)))


def flower():
    t = np.linspace(0, 2 * math.pi, 125, endpoint=False)
    radius = 0.62 + 0.38 * np.abs(np.cos(2.5 * t))
    return polygon(fitted(np.stack([radius * np.sin(t), -radius * np.cos(t)], axis=1)))


def moon():
    outer, bite = (lambda x, y: np.hypot(x, y) - 1), (lambda x, y: np.hypot(x - 0.5, y + 0.1) - 0.78)
    return lambda x, y: np.maximum(outer(x, y), -bite(x, y))


def cross(arm=0.34):
    corners = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    return polygon(corners + [(-x, -y) for x, y in corners])


DISTANCE = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": polygon([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
    "triangle": polygon([(0, -0.9), (1, 0.85), (-1, 0.85)]),
    "star": star(),
    "heart": heart(),
    "diamond": polygon([(0, -1), (0.8, 0), (0, 1), (-0.8, 0)]),
    "cross": cross(),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.78) - 0.22,
    "moon": moon(),
    "flower": flower(),
}

# Radius of an object in 128-pixel units, and how far it may stray from its place, by layout and size.
SINGLE_RADIUS, PAIR_RADIUS = (17.0, 30.0, 46.0), (14.0, 20.0, 27.5)
INSIDE_RADIUS = 15.0, 48.0


class Painter:
    """Draws scenes (`random_scenes` rows) and confetti, both f32 [n, 3, size, size] in [-1, 1]."""

    def __init__(self, device="cpu"):
        axis = (np.arange(ATLAS) + 0.5) / ATLAS * 2 * REACH - REACH
        x, y = np.meshgrid(axis, axis)
        maps = np.stack([DISTANCE[name](x, y) for name in S.SHAPES]).astype(np.float32)
        self.maps = torch.from_numpy(maps).to(device)[:, None]
        self.palette = torch.tensor(list(S.COLOURS.values()), device=device, dtype=torch.float32) / 127.5 - 1

    def coverage(self, shape, centre, radius, size):
        """How much of each pixel the objects cover: f32 [n, 1, size, size]. Positions and radii in 128-pixel units."""
        axis = (torch.arange(size, device=shape.device) + 0.5) * (128 / size)
        x = (axis[None, None, :] - centre[:, 0, None, None]) / radius[:, None, None]
        y = (axis[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
        grid = torch.stack([x.expand(-1, size, -1), y.expand(-1, -1, size)], dim=-1) / REACH
        # One map a lookup would copy a map for each object; one tall image holds them all instead.
        count = len(S.SHAPES)
        tall = self.maps.reshape(1, 1, count * ATLAS, ATLAS)
        inset = 1 - 1 / ATLAS  # stay clear of the neighbouring map
        row = (grid[..., 1].clamp(-inset, inset) + 1 + 2 * shape[:, None, None]) / count - 1
        look = torch.stack([grid[..., 0].clamp(-inset, inset), row], dim=-1)
        look = look.reshape(1, -1, size, 2)
        distance = F.grid_sample(tall, look, align_corners=False).reshape(-1, 1, size, size)
        return (0.5 - distance * (radius * size / 128)[:, None, None, None]).clamp(0, 1)

    def scenes(self, scenes, size=128):
        n, device = len(scenes), scenes.device
        wobble = lambda *shape: torch.rand(n, *shape, device=device) * 2 - 1  # noqa: E731
        layout, s1, c1, z1, s2, c2, z2, bg = scenes.unbind(1)
        radius = lambda table, z: torch.tensor(table, device=device)[z]  # noqa: E731
        pick = lambda *options: torch.stack(torch.broadcast_tensors(*options))[layout, torch.arange(n, device=device)]  # noqa: E731
        zero = torch.zeros(n, device=device)
        pair1, pair2 = radius(PAIR_RADIUS, z1), radius(PAIR_RADIUS, z2)
        inner, outer = zero + INSIDE_RADIUS[0], zero + INSIDE_RADIUS[1]
        r1 = pick(radius(SINGLE_RADIUS, z1), pair1, pair1, inner) * (1 + 0.05 * wobble())
        r2 = pick(zero + 1, pair2, pair2, outer) * (1 + 0.05 * wobble())
        # Two neighbours share the picture so that the margins and the gap between them are alike.
        margin = (128 - 2 * r1 - 2 * r2) / 3
        first, second = margin + r1 - 64, 64 - margin - r2
        near, far = margin * 0.25 * wobble(), margin * 0.25 * wobble()
        across1, across2 = 7 * wobble(), 7 * wobble()
        room = (60 - r1).clamp(max=9)
        x1 = pick(room * wobble(), first + near, across1, 3 * wobble())
        y1 = pick(room * wobble(), across1, first + near, 3 * wobble())
        shift = wobble(2) * 3
        x2 = pick(zero, second + far, across2, zero)
        y2 = pick(zero, across2, second + far, zero)
        centre1 = torch.stack([x1, y1], 1) + torch.where((layout == S.INSIDE)[:, None], shift, 0) + 64
        centre2 = torch.stack([x2, y2], 1) + torch.where((layout == S.INSIDE)[:, None], shift, 0) + 64
        image = self.palette[bg][:, :, None, None].expand(-1, -1, size, size)
        back = self.coverage(s2, centre2, r2, size) * (layout != S.SINGLE)[:, None, None, None]
        image = torch.lerp(image, self.palette[c2][:, :, None, None], back)
        return torch.lerp(image, self.palette[c1][:, :, None, None], self.coverage(s1, centre1, r1, size))

    def confetti(self, count, size=128, objects=5):
        """Random shapes anywhere in any colour, so that the autoencoder learns edges rather than layouts."""
        device = self.palette.device
        colour = lambda: torch.rand(count, 3, 1, 1, device=device) * 2 - 1  # noqa: E731
        image = colour().expand(-1, -1, size, size)
        for _ in range(objects):
            shape = torch.randint(len(S.SHAPES), (count,), device=device)
            centre = torch.rand(count, 2, device=device) * 128
            radius = 8 + 40 * torch.rand(count, device=device) ** 2
            image = torch.lerp(image, colour(), self.coverage(shape, centre, radius, size))
        return image
