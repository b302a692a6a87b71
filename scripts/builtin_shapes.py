"""Outlines of the shapes that the builtin network learns; what is left out and why: `builtin_pictures.py`.

Legend: N points, x to the right, y down, about the unit circle's size.
"""

import math

import numpy as np

from bulktag.model.painting import regular_polygon, rotate


def _star(rng: np.random.Generator, num_points: int, inner: tuple[float, float]) -> np.ndarray:
    points_N2 = regular_polygon(2 * num_points)
    points_N2[1::2] *= rng.uniform(*inner)
    return points_N2


def _polar(radius_of_angle, num_points: int = 96) -> np.ndarray:
    angles = np.arange(num_points) * (2 * math.pi / num_points)
    return (np.stack([np.cos(angles), np.sin(angles)]) * radius_of_angle(angles)).T


def _arc(radius: float, start: float, stop: float, num_points: int = 40) -> np.ndarray:
    angles = np.linspace(start, stop, num_points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _crescent(rng: np.random.Generator) -> np.ndarray:
    bite = rng.uniform(0.25, 0.6)
    outer = _arc(1.0, 0.35 * math.pi, 1.65 * math.pi)
    inner = _arc(1.0, 1.65 * math.pi, 0.35 * math.pi) * (1 - bite * 0.5, 1.0)
    inner[:, 0] = outer[::-1, 0] + bite * (1 - (np.linspace(-1, 1, len(outer)) ** 2))
    return np.concatenate([outer, inner])


def _thicken(spine_N2: np.ndarray, half_width: float) -> np.ndarray:
    """A band around an open line, as one closed outline."""
    along = np.gradient(spine_N2, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9) * half_width
    return np.concatenate([spine_N2 + normal, (spine_N2 - normal)[::-1]])


def _wave(rng: np.random.Generator) -> np.ndarray:
    x = np.linspace(-1, 1, 80)
    y = rng.uniform(0.25, 0.45) * np.sin(x * math.pi * rng.choice([1.5, 2.0, 3.0]))
    return _thicken(np.stack([x, y], 1), rng.uniform(0.07, 0.16))


def _spiral(rng: np.random.Generator) -> np.ndarray:
    turns = rng.uniform(1.6, 2.8)
    angles = np.linspace(0.3, turns * 2 * math.pi, 160)
    spine = np.stack([np.cos(angles), np.sin(angles)], 1) * (angles / angles[-1])[:, None]
    return _thicken(spine, 0.5 / turns / rng.uniform(2.2, 4.0))


def _zigzag(rng: np.random.Generator) -> np.ndarray:
    teeth = int(rng.integers(3, 6))
    x = np.linspace(-1, 1, teeth + 1)
    y = np.where(np.arange(teeth + 1) % 2, 1.0, -1.0) * rng.uniform(0.25, 0.4)
    thick = rng.uniform(0.12, 0.22)
    return np.concatenate([np.stack([x, y - thick], 1), np.stack([x, y + thick], 1)[::-1]])


def _heart(rng: np.random.Generator) -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 80, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], 1) / 17


def _drop(rng: np.random.Generator) -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 80, endpoint=False)
    return np.stack([np.sin(t) * np.sin(t / 2) ** rng.uniform(1.5, 3.0) * rng.uniform(0.8, 1.0), -np.cos(t)], 1)


def _gear(rng: np.random.Generator) -> np.ndarray:
    teeth, depth = int(rng.integers(7, 12)), rng.uniform(0.2, 0.35)
    return _polar(lambda a: 1 - depth * (np.sin(a * teeth) > 0), 240)


def _flower(rng: np.random.Generator) -> np.ndarray:
    petals, depth = int(rng.integers(5, 9)), rng.uniform(0.25, 0.5)
    return _polar(lambda a: 1 - depth * (1 - np.abs(np.sin(a * petals / 2))), 160)


def _cloud(rng: np.random.Generator) -> np.ndarray:
    bumps = int(rng.integers(4, 7))
    t = np.linspace(0, math.pi, 80)
    radius = 0.75 + 0.25 * np.abs(np.sin(t * bumps))
    return np.stack([np.cos(t) * radius, 0.3 - np.sin(t) * radius * rng.uniform(0.6, 0.9)], 1)


def _asterisk(rng: np.random.Generator, arms: int) -> np.ndarray:
    width = rng.uniform(0.14, 0.24)
    arm = np.array([[-width, -1.0], [width, -1.0]])
    inner = np.array([[width, -width / math.tan(math.pi / arms)]])
    return np.concatenate([rotate(np.concatenate([arm, inner]), 2 * math.pi * i / arms) for i in range(arms)])


def _points(*coordinates: float) -> np.ndarray:
    return np.array(coordinates, np.float64).reshape(-1, 2)


def _arrow(rng: np.random.Generator, heads: int) -> np.ndarray:
    shaft, wing, neck = rng.uniform(0.1, 0.22), rng.uniform(0.4, 0.65), rng.uniform(0.0, 0.4)
    head = _points(shaft, -neck, wing, -neck, 0, -1, -wing, -neck, -shaft, -neck)
    if heads == 2:
        neck = max(neck, 0.2)
        head[[0, 1, 3, 4], 1] = -neck
        return np.concatenate([head, -head])
    return np.concatenate([_points(-shaft, 1, shaft, 1), head])


def _chevron(rng: np.random.Generator) -> np.ndarray:
    thick, tip = rng.uniform(0.35, 0.6), rng.uniform(0.5, 0.9)
    upper = _points(-0.8, tip - 0.5, 0, -0.5, 0.8, tip - 0.5)
    return np.concatenate([upper, upper[::-1] + np.array([0, thick])])


def _pacman(rng: np.random.Generator) -> np.ndarray:
    mouth = rng.uniform(0.4, 0.9)
    return np.concatenate([_arc(1.0, mouth, 2 * math.pi - mouth, 60), [[0.0, 0.0]]])


def _lens(rng: np.random.Generator) -> np.ndarray:
    t = np.linspace(0, math.pi, 40)
    upper = np.stack([np.cos(t), -np.sin(t) * rng.uniform(0.3, 0.5)], 1)
    return np.concatenate([upper, -upper])


def _fish(rng: np.random.Generator) -> np.ndarray:
    t = np.linspace(0.25, 2 * math.pi - 0.25, 60)
    body = np.stack([-0.3 + 0.7 * np.cos(t), rng.uniform(0.3, 0.5) * np.sin(t)], 1)
    return np.concatenate([body, _points(1, -0.45, 0.8, 0, 1, 0.45)])


def _tree(rng: np.random.Generator) -> np.ndarray:
    half = _points(0.15, 1, 0.15, 0.7, 0.8, 0.7, 0.3, 0.15, 0.6, 0.15, 0.2, -0.4, 0.45, -0.4, 0, -1)
    return np.concatenate([half, (half * (-1, 1))[::-1]])


def _mushroom(rng: np.random.Generator) -> np.ndarray:
    stem = rng.uniform(0.2, 0.4)
    return np.concatenate([_arc(0.9, -math.pi, 0.0), _points(stem, 0.1, stem, 0.9, -stem, 0.9, -stem, 0.1)])


def _stairs(rng: np.random.Generator) -> np.ndarray:
    steps = int(rng.integers(3, 5))
    edge = np.linspace(-0.8, 0.8, steps + 1)
    corners = [[edge[i + j], -edge[i]] for i in range(steps) for j in (0, 1)]
    return np.concatenate([corners, [[0.8, 0.8], [-0.8, 0.8]]])


# Each makes an outline of about the unit circle's size.
SHAPES = {
    "star4": lambda rng: _star(rng, 4, (0.25, 0.42)),
    "star5": lambda rng: _star(rng, 5, (0.35, 0.55)),
    "star6": lambda rng: _star(rng, 6, (0.45, 0.65)),
    "star8": lambda rng: _star(rng, 8, (0.4, 0.75)),
    "pentagon": lambda rng: regular_polygon(5),
    "hexagon": lambda rng: regular_polygon(6),
    "heart": _heart,
    "crescent": _crescent,
    "arrow": lambda rng: _arrow(rng, 1),
    "double_arrow": lambda rng: _arrow(rng, 2),
    "chevron": _chevron,
    "half_disc": lambda rng: _arc(1.0, 0, math.pi),
    "quarter_disc": lambda rng: np.concatenate([_arc(1.4, 0, math.pi / 2), [[0, 0]]]) - 0.55,
    "pacman": _pacman,
    "drop": _drop,
    "gear": _gear,
    "flower": _flower,
    "cloud": _cloud,
    "lightning": lambda rng: _points(0.2, -1, -0.55, 0.15, -0.05, 0.15, -0.25, 1, 0.55, -0.25, 0.05, -0.25, 0.5, -1),
    "spiral": _spiral,
    "zigzag": _zigzag,
    "wave": _wave,
    "parallelogram": lambda rng: _points(-1, 0.4, -0.2, -0.4, 1, -0.4, 0.2, 0.4) * (1, rng.uniform(0.8, 1.2)),
    "trapezoid": lambda rng: _points(-0.9, 0.5, -0.35, -0.5, 0.35, -0.5, 0.9, 0.5) * (1, rng.uniform(0.7, 1.2)),
    "kite": lambda rng: _points(0, -1, 0.55, rng.uniform(-0.5, -0.3), 0, 1, -0.55, -0.4),
    "hourglass": lambda rng: _points(-0.6, -0.8, 0.6, -0.8, 0.1, 0, 0.6, 0.8, -0.6, 0.8, -0.1, 0),
    "house": lambda rng: _points(0, -0.9, 0.85, -0.1, 0.6, -0.1, 0.6, 0.8, -0.6, 0.8, -0.6, -0.1, -0.85, -0.1),
    "lens": _lens,
    "fish": _fish,
    "tree": _tree,
    "mushroom": _mushroom,
    "crown": lambda rng: _points(-0.8, 0.6, -0.9, -0.6, -0.4, 0, 0, -0.8, 0.4, 0, 0.9, -0.6, 0.8, 0.6),
    "stairs": _stairs,
    "asterisk3": lambda rng: _asterisk(rng, 3),
    "asterisk5": lambda rng: _asterisk(rng, 5),
    "asterisk6": lambda rng: _asterisk(rng, 6),
}
