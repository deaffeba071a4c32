"""Measures how many of the held-out prompts the demo model draws fully right, from the pixels alone.

The judge knows nothing of the training code: it has its own colour table and its own outlines, and describes any
picture without being told the prompt. A prompt counts as right when the description has exactly the objects asked
for, each of the right shape, colour and size, in the right relation, on the right background.

    python evaluate.py ../../assets/demo-model        generates and judges prompts.json
    python evaluate.py --folder PICTURES              judges 000.png, 001.png, .. drawn elsewhere
    python evaluate.py --self-test                    judges the training pictures, right and shuffled
"""

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

HERE = Path(__file__).parent
PALETTE = {
    "red": "#dc2626", "orange": "#f98c16", "yellow": "#fad628", "green": "#22a04a", "cyan": "#32c8dc", "blue": "#255ae1",
    "purple": "#8032be", "pink": "#f48cbe", "brown": "#784826", "black": "#141418", "gray": "#8c9096", "white": "#fafafa",
}  # fmt: skip
NAMES = list(PALETTE)
RGB = np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in PALETTE.values()], dtype=np.float64)
GRID, FINE = 64, 4
MIN_AREA, MIN_CORE = 40, 8
# Half of an object's larger side, in pixels: below the first bound it is small, above the second large.
SINGLE_BOUNDS, PAIR_BOUNDS = (23.0, 38.0), (16.8, 23.5)
MAX_COLOUR_ERROR, MIN_LIKENESS = 40.0, 0.7


def outline(shape, n=720):
    """The outline(s) of a shape as polar or corner points, y downwards, any scale."""
    t = np.linspace(0, 2 * math.pi, n, endpoint=False)
    around = np.stack([np.sin(t), -np.cos(t)], axis=1)
    match shape:
        case "circle" | "ring" | "moon":
            return around
        case "square":
            return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        case "triangle":
            return np.array([(0, -1), (1.14, 1), (-1.14, 1)])
        case "diamond":
            return np.array([(0, -1.25), (1, 0), (0, 1.25), (-1, 0)])
        case "cross":
            a = np.array([(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1)])
            return np.concatenate([a, -a])
        case "star":
            radius = np.where(np.arange(10) % 2 == 0, 1, 0.42)
            angle = np.arange(10) * math.pi / 5
            return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)
        case "heart":
            y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
            return np.stack([16 * np.sin(t) ** 3, -y], axis=1)
        case "flower":
            return around * (0.62 + 0.38 * np.abs(np.cos(2.5 * t)))[:, None]


def fit(mask):
    """The bounding box of a mask, centred in a square and scaled to GRID x GRID."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(box.shape)
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - box.shape[0]) // 2, (side - box.shape[1]) // 2
    square[top : top + box.shape[0], left : left + box.shape[1]] = 255 * box
    return np.asarray(Image.fromarray(square).resize((GRID, GRID), Image.BILINEAR)) > 127


def sharpened(solid, picture, shade, around):
    """A mask FINE times finer than the pixels: the shade's share of each edge pixel, interpolated and cut at a half."""
    line = shade - around
    share = ((picture - around) @ line / (line @ line)).clip(0, 1)
    edge = ndimage.binary_dilation(solid, np.ones((3, 3))) & ~ndimage.binary_erosion(solid, np.ones((3, 3)))
    share = np.where(edge, share, solid).astype(np.float32)
    rows, columns = np.nonzero(share > 0)
    window = share[max(rows.min() - 2, 0) : rows.max() + 3, max(columns.min() - 2, 0) : columns.max() + 3]
    return ndimage.zoom(np.pad(window, 2), FINE, order=1) > 0.5


def template(shape, size=512):
    points = outline(shape)
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) / (high - low).max() * (size - 8) + size / 2
    image = Image.new("1", (size, size))
    draw = ImageDraw.Draw(image)
    draw.polygon([tuple(p) for p in points], fill=1)

    def disc(x, y, radius):
        centre, half = size / 2, (size - 8) / 2
        x, y, radius = centre + half * x, centre + half * y, half * radius
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=0)

    if shape == "ring":
        disc(0, 0, 0.56)
    if shape == "moon":
        disc(0.5, -0.1, 0.78)
    return fit(np.asarray(image))


TEMPLATES = {
    name: template(name)
    for name in ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "moon", "flower")
}


def likeness(a, b):
    """Intersection over union."""
    return (a & b).sum() / (a | b).sum()


def regions(picture):
    """Splits a picture into areas of one palette colour: list of (colour index, mask), and the map of areas.

    Anti-aliased edges pass through foreign colours, so an area must have a core that survives an erosion;
    every other pixel then joins the area beside it whose colour is nearest.
    """
    distance = np.linalg.norm(picture[:, :, None, :] - RGB, axis=-1)
    label = distance.argmin(axis=-1)
    cores = []
    for colour in np.unique(label):
        eroded = ndimage.binary_erosion(label == colour, np.ones((3, 3)), border_value=1)
        parts, count = ndimage.label(eroded, np.ones((3, 3)))
        cores += [(colour, parts == i) for i in range(1, count + 1) if (parts == i).sum() >= MIN_CORE]
    area = np.full(label.shape, -1)
    for i, (_, core) in enumerate(cores):
        area[core] = i
    shades = np.array([picture[core].mean(axis=0) for _, core in cores])
    for _ in range(8):
        best = np.full(label.shape, np.inf)
        choice = area.copy()
        for i in range(len(cores)):
            near = ndimage.binary_dilation(area == i, np.ones((3, 3))) & (area < 0)
            cost = np.linalg.norm(picture - shades[i], axis=-1)
            better = near & (cost < best)
            best[better], choice[better] = cost[better], i
        area = choice
    return [(colour, area == i, shades[i]) for i, (colour, _) in enumerate(cores)]


def describe(picture):
    """What a picture shows: background, objects and the first problem found, if any."""
    parts = regions(picture)
    border = np.ones(picture.shape[:2], dtype=bool)
    border[2:-2, 2:-2] = False
    share = Counter({i: (mask & border).sum() for i, (_, mask, _) in enumerate(parts)})
    if not share:
        return {"background": None, "objects": [], "problem": "no flat areas"}
    ground, edge = share.most_common(1)[0]
    problem = None if edge > 0.97 * border.sum() else "background not uniform at the border"
    colour = parts[ground][0]
    background = np.zeros_like(border)
    for c, mask, _ in parts:
        background |= mask if c == colour else False
    filled = [ndimage.binary_fill_holes(mask) for _, mask, _ in parts]
    # The area that surrounds each area, most of all: what lies behind it.
    behind = []
    for i in range(len(parts)):
        collar = ndimage.binary_dilation(filled[i], np.ones((3, 3)), iterations=2) & ~filled[i]
        behind.append(max(range(len(parts)), key=lambda j: -1 if j == i else (collar & parts[j][1]).sum()))
    objects = []
    for i, (c, mask, shade) in enumerate(parts):
        if np.linalg.norm(shade - RGB[c]) > MAX_COLOUR_ERROR:
            problem = problem or f"unclear {NAMES[c]}"
        if c == colour:
            continue
        # The middle of a ring that lies on an object shows that object.
        if parts[behind[behind[i]]][0] == c and parts[behind[i]][0] != colour:
            continue
        if mask.sum() < MIN_AREA:
            problem = problem or f"a stray {NAMES[c]} spot"
            continue
        # What lies on an object belongs to its outline, unless that is a hole that shows what is behind.
        holes, count = ndimage.label(filled[i] & ~mask)
        solid = mask.copy()
        for number in range(1, count + 1):
            hole = holes == number
            shown = sum((hole & m).sum() for k, m, _ in parts if k == parts[behind[i]][0])
            if shown < 0.2 * hole.sum() or hole.sum() < 6:
                solid |= hole
        fine = sharpened(solid, picture, shade, parts[behind[i]][2])
        extent = max(np.ptp(axis) + 1 for axis in np.nonzero(fine))
        scores = {name: likeness(fit(fine), t) for name, t in TEMPLATES.items()}
        shape = max(scores, key=scores.get)
        rows, columns = np.nonzero(solid)
        objects.append({
            "shape": shape, "colour": NAMES[c], "likeness": scores[shape], "mask": filled[i],
            "x": (columns.min() + columns.max()) / 2, "y": (rows.min() + rows.max()) / 2,
            "half": extent / FINE / 2,
        })  # fmt: skip
        if scores[shape] < MIN_LIKENESS:
            problem = problem or f"a shapeless {NAMES[c]} thing ({scores[shape]:.2f} {shape})"
    return {"background": NAMES[colour], "objects": objects, "problem": problem}


def relation(one, two):
    inner = (one["mask"] & two["mask"]).sum() > 0.8 * one["mask"].sum()
    if inner and one["mask"].sum() < two["mask"].sum():
        return "inside"
    dx, dy = one["x"] - two["x"], one["y"] - two["y"]
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def size(thing, bounds):
    return ("small", "medium", "large")[sum(thing["half"] > b for b in bounds)]


def judge(picture, wanted):
    """None if the picture shows what is wanted, else the first thing that is wrong."""
    seen = describe(picture)
    if seen["background"] != wanted["background"]:
        return f"background {seen['background']}"
    if seen["problem"]:
        return seen["problem"]
    objects, expected = seen["objects"], wanted["objects"]
    if len(objects) != len(expected):
        return f"{len(objects)} objects"
    nested = wanted["relation"] == "inside"
    bounds = SINGLE_BOUNDS if len(expected) == 1 or nested else PAIR_BOUNDS
    complaints = []
    for order in (objects, objects[::-1])[: len(objects)]:
        complaint = None
        for thing, want in zip(order, expected):
            found = {"colour": thing["colour"], "shape": thing["shape"], "size": size(thing, bounds)}
            for key, value in found.items():
                if value != want[key] and complaint is None:
                    complaint = f"{want['colour']} {want['shape']}: {key} {value}"
        if complaint is None and len(order) == 2 and relation(*order) != wanted["relation"]:
            complaint = f"relation {relation(*order)}"
        if complaint is None:
            return None
        complaints.append(complaint)
    # The order in which the colours fit says more about what went wrong.
    return min(complaints, key=lambda text: ": colour" in text)


def generate(folder, prompts, args):
    """Pictures of the prompts, uint8 [128, 128, 3]; prompt i has seed i."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipe = pipe.to(args.device)
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), args.batch):
        part = prompts[start : start + args.batch]
        yield from pipe(
            [p["prompt"] for p in part],
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=[torch.Generator("cpu").manual_seed(args.seed + start + i) for i in range(len(part))],
        ).images


def self_test():
    """The judge on drawings of the training code: (right pictures accepted, shuffled pictures accepted)."""
    import torch

    import scenes
    from drawing import Painter

    torch.manual_seed(1)
    rows = scenes.random_scenes(400, keep=scenes.held_out)
    pictures = ((Painter().scenes(rows) + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).double().numpy()
    wanted = [scenes.describe(row) for row in rows]
    right = [judge(p, w) for p, w in zip(pictures, wanted)]
    for verdict, want in zip(right, wanted):
        if verdict:
            print(f"  {want['prompt']}: {verdict}")
    shuffled = [judge(p, w) for p, w in zip(np.roll(pictures, 1, axis=0), wanted)]
    print(f"drawings accepted {right.count(None) / len(right):.1%}, shuffled {shuffled.count(None) / len(shuffled):.1%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=HERE.parents[1] / "assets/demo-model")
    parser.add_argument("--folder", type=Path, help="judge these pictures instead of generating")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.json")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sheet", type=Path, help="write all pictures side by side, wrong ones framed in red")
    args = parser.parse_args()
    if args.self_test:
        return self_test()
    prompts = json.loads(args.prompts.read_text())
    if args.folder:
        pictures = [Image.open(args.folder / f"{i:03}.png").convert("RGB") for i in range(len(prompts))]
    else:
        pictures = list(generate(args.model, prompts, args))
    verdicts = [judge(np.asarray(p, dtype=np.float64), want) for p, want in zip(pictures, prompts)]
    for want, verdict in zip(prompts, verdicts):
        if verdict:
            print(f"  {want['prompt']}: {verdict}")
    good = verdicts.count(None)
    print(f"{good} of {len(prompts)} prompts fully right ({good / len(prompts):.1%})")
    if args.sheet:
        columns = 20
        sheet = Image.new("RGB", (columns * 134, -(-len(pictures) // columns) * 134), "#808080")
        for i, (picture, verdict) in enumerate(zip(pictures, verdicts)):
            x, y = i % columns * 134, i // columns * 134
            sheet.paste("#ff0000" if verdict else "#808080", (x, y, x + 134, y + 134))
            sheet.paste(picture, (x + 3, y + 3))
        sheet.save(args.sheet)


if __name__ == "__main__":
    main()
