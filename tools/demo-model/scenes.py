"""The small language the demo model speaks: what a scene is, how it is described, which scenes are held out.

A scene is one row of integers (see `FIELDS`), so that millions of them can be drawn, captioned and
filtered at once with tensor operations, on a CPU or a GPU. Four layouts exist:

    single   one object, roughly in the middle
    side     object 1 left of object 2
    stack    object 1 above object 2
    inside   a small object 1 in the middle of a large object 2

`right of` and `below` need no layout of their own: captions name the two objects in either order.
"""

import json
import sys
from itertools import product

import torch

SHAPES = ["circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "moon", "flower"]
SIZES = ["small", "medium", "large"]
LAYOUTS = ["single", "side", "stack", "inside"]
CONTAINERS = ["circle", "square", "heart", "diamond", "ring"]
COLOURS = {
    "red": (220, 38, 38),
    "orange": (249, 140, 22),
    "yellow": (250, 214, 40),
    "green": (34, 160, 74),
    "cyan": (50, 200, 220),
    "blue": (37, 90, 225),
    "purple": (128, 50, 190),
    "pink": (244, 140, 190),
    "brown": (120, 72, 38),
    "black": (20, 20, 24),
    "gray": (140, 144, 150),
    "white": (250, 250, 250),
}
COLOUR_NAMES = list(COLOURS)
WHITE, BLACK = COLOUR_NAMES.index("white"), COLOUR_NAMES.index("black")
SMALL, MEDIUM, LARGE = range(3)
SINGLE, SIDE, STACK, INSIDE = range(4)

FIELDS = ["layout", "shape1", "colour1", "size1", "shape2", "colour2", "size2", "background"]

SYNONYMS = {
    "small": ["small", "small", "tiny", "little"],
    "medium": ["medium"],
    "large": ["large", "big", "big", "huge"],
    "circle": ["circle", "circle", "circle", "disc"],
    "diamond": ["diamond", "diamond", "diamond", "rhombus"],
    "cross": ["cross", "cross", "cross", "plus"],
    "moon": ["moon", "moon", "moon", "crescent"],
    "purple": ["purple", "purple", "purple", "violet"],
    "gray": ["gray", "grey"],
    "cyan": ["cyan", "cyan", "cyan", "turquoise"],
}
# What may stand before and after the description. `<j..>` are words of no meaning, so that an unknown word in a
# prompt does not upset the picture.
FRAMES = [("", "")] * 8 + [
    ("a picture of ", ""), ("a drawing of ", ""), ("an image of ", ""), ("a photo of ", ""), ("draw ", ""),
    ("<j1> ", ""), ("<j1> <j2> <j3> ", ""), ("", " <j1>"), ("", " <j1> <j2> <j3> <j4>"),
]  # fmt: skip
GROUNDS = [
    "on <ab> <bg> background",
    "on <ab> <bg> background",
    "on <ab> <bg> background",
    "with <ab> <bg> background",
    "on <bg>",
    ", <bg> background",
]
RELATIONS = {
    SIDE: (["left of", "to the left of", "on the left of", "beside", "next to"],
           ["right of", "to the right of", "on the right of"]),
    STACK: (["above", "above", "over", "on top of"], ["below", "below", "under", "beneath"]),
    INSIDE: (["inside", "inside", "in", "within"], []),
}


def default_background(scenes):
    """Background of a caption that names none: white, or black when an object is white."""
    white = (scenes[:, 2] == WHITE) | ((scenes[:, 0] != SINGLE) & (scenes[:, 5] == WHITE))
    return torch.where(white, BLACK, WHITE)


def scene_index(scenes):
    """A unique integer for each combination of layout, objects and background."""
    radix = [4, len(SHAPES), len(COLOURS), 3, len(SHAPES), len(COLOURS), 3, len(COLOURS)]
    index = torch.zeros_like(scenes[:, 0])
    for column, base in enumerate(radix):
        index = index * base + scenes[:, column]
    return index


def held_out(scenes):
    """True for about one combination in ten: those never occur in training."""
    x = scene_index(scenes)
    for _ in range(3):
        x = (x * 2654435761 + 974711) & 0xFFFFFFFF
        x = x ^ (x >> 15)
    return x % 10 == 0


def random_scenes(count, device="cpu", keep=lambda s: ~held_out(s)):
    """`count` random scenes, int64 [count, 8], for which `keep` holds (training scenes unless told otherwise)."""
    containers = torch.tensor([SHAPES.index(s) for s in CONTAINERS], device=device)
    found, total = [], 0
    while total < count:
        n = max(256, 2 * count)
        pick = lambda k: torch.randint(k, (n,), device=device)  # noqa: E731
        layout = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3], device=device)[pick(12)]
        scenes = torch.stack(
            [layout, pick(10), pick(12), pick(3), pick(10), pick(12), pick(3), pick(12)], dim=1
        )
        single, inside = layout == SINGLE, layout == INSIDE
        scenes[:, 3] = torch.where(inside, SMALL, scenes[:, 3])
        scenes[:, 6] = torch.where(inside, LARGE, scenes[:, 6])
        scenes[:, 4] = torch.where(inside, containers[pick(len(CONTAINERS))], scenes[:, 4])
        scenes[:, 4:7] = torch.where(single[:, None], 0, scenes[:, 4:7])
        scenes[:, 7] = torch.where(torch.rand(n, device=device) < 0.15, default_background(scenes), scenes[:, 7])
        two = scenes[:, 0] != SINGLE
        clear = (scenes[:, 7] != scenes[:, 2]) & (~two | (scenes[:, 7] != scenes[:, 5]))
        # An object may share its colour with its neighbour, but not with what lies behind it.
        clear &= ~inside | (scenes[:, 2] != scenes[:, 5])
        scenes = scenes[clear & keep(scenes)]
        found.append(scenes)
        total += len(scenes)
    return torch.cat(found)[:count]


def templates(layout, size1, size2, default_ground):
    """Every caption pattern of one kind of scene. `<..>` are slots; see `Captioner`."""

    def noun(i, size, article=True, named_size=True):
        sized = named_size and size != MEDIUM
        words = f"<z{i}> " if sized else ""
        lead = ("a " if sized else f"<a{i}> ") if article else ""
        return f"{lead}{words}<c{i}> <s{i}>"

    grounds = GROUNDS + ([""] * 8 if default_ground else [])
    patterns = []
    if layout == SINGLE:
        tails = [noun(1, size1)] * 4 + [noun(1, size1, article=False)]
        tails += ["a <z1> <c1> <s1>"] if size1 == MEDIUM else []
        # A few captions leave the colour to chance.
        patterns += [f"a {'' if size1 == MEDIUM else '<z1> '}<s1> {ground}" for ground in grounds] * 4
    else:
        forward, backward = RELATIONS[layout]
        tails = []
        for named in [True] if layout != INSIDE else [True, False]:
            one, two = noun(1, size1, named_size=named), noun(2, size2, named_size=named)
            tails += [f"{one} {relation} {two}" for relation in forward]
            tails += [f"{two} {relation} {one}" for relation in backward]
            tails += [f"{one} and {two}"] if layout != INSIDE else []
    for (before, after), tail, ground in product(FRAMES, tails, grounds):
        patterns.append(f"{before}{tail} {ground}{after}")
    return patterns


SLOTS = ["c1", "s1", "z1", "a1", "c2", "s2", "z2", "a2", "bg", "ab", "j1", "j2", "j3", "j4"]


def words():
    """Every word a caption can contain."""
    seen = set()
    for layout, z1, z2, default in product(range(4), range(3), range(3), (False, True)):
        for pattern in templates(layout, z1, z2, default):
            seen.update(w for w in pattern.split() if not w.startswith("<"))
    for name in SHAPES + SIZES + COLOUR_NAMES:
        seen.update(SYNONYMS.get(name, [name]))
    return sorted((seen | {"an"}) - {","})


class Captioner:
    """Turns scenes into token ids by table look-ups only, so that it runs on the GPU beside the training step.

    Every word of the language is one token, so a template is a row of ids in which negative numbers are slots.
    """

    def __init__(self, vocab, length, device="cpu"):
        self.length, self.start, self.end = length, vocab["<|startoftext|>"], vocab["<|endoftext|>"]
        token = lambda word: vocab[word + "</w>"]  # noqa: E731
        slot = {f"<{name}>": -1 - i for i, name in enumerate(SLOTS)}
        rows, offsets, counts = [], [], []
        for kind in product(range(4), range(3), range(3), (False, True)):
            patterns = templates(*kind)
            offsets.append(len(rows))
            counts.append(len(patterns))
            for pattern in patterns:
                row = [self.start, *(slot[w] if w in slot else token(w) for w in pattern.split()), self.end]
                rows.append(row + [self.end] * (length - len(row)))
        as_tensor = lambda x: torch.tensor(x, dtype=torch.long, device=device)  # noqa: E731
        self.rows, self.offsets, self.counts = as_tensor(rows), as_tensor(offsets), as_tensor(counts)

        def fillers(names):
            choices = [[token(w) for w in SYNONYMS.get(n, [n])] for n in names]
            return as_tensor([(c * 4)[:4] for c in choices])

        self.shapes, self.sizes, self.colours = fillers(SHAPES), fillers(SIZES), fillers(COLOUR_NAMES)
        self.article = as_tensor([token("an" if n[0] in "aeiou" else "a") for n in COLOUR_NAMES])
        known = {token(w) for w in words()} | {self.start, self.end}
        self.junk = as_tensor(sorted(set(vocab.values()) - known))

    def __call__(self, scenes):
        """Random captions: token ids, int64 [n, length]."""
        n, device = len(scenes), scenes.device
        layout, s1, c1, z1, s2, c2, z2, bg = scenes.unbind(1)
        default = (bg == default_background(scenes)).long()
        kind = ((layout * 3 + z1) * 3 + z2) * 2 + default
        which = (torch.rand(n, device=device) * self.counts[kind]).long()
        rows = self.rows[self.offsets[kind] + which]
        synonym = torch.randint(4, (6, n), device=device)
        junk = self.junk[torch.randint(len(self.junk), (4, n), device=device)]
        fill = torch.stack([
            self.colours[c1, synonym[0]], self.shapes[s1, synonym[1]], self.sizes[z1, synonym[2]], self.article[c1],
            self.colours[c2, synonym[3]], self.shapes[s2, synonym[4]], self.sizes[z2, synonym[5]], self.article[c2],
            self.colours[bg, synonym[0]], self.article[bg], *junk,
        ], dim=1)  # fmt: skip
        return torch.where(rows < 0, fill.gather(1, (-1 - rows).clamp(min=0)), rows)


def describe(scene):
    """The plain caption of one scene and what a picture of it must show."""
    layout, s1, c1, z1, s2, c2, z2, bg = scene.tolist()

    def noun(s, c, z):
        colour = COLOUR_NAMES[c]
        lead = f"a {SIZES[z]}" if z != MEDIUM else ("an" if colour[0] in "aeiou" else "a")
        return f"{lead} {colour} {SHAPES[s]}"

    def thing(s, c, z):
        return {"shape": SHAPES[s], "colour": COLOUR_NAMES[c], "size": SIZES[z]}

    ground = f"on {'an' if COLOUR_NAMES[bg][0] in 'aeiou' else 'a'} {COLOUR_NAMES[bg]} background"
    one, two, flip = (s1, c1, z1), (s2, c2, z2), (s1 + c2 + bg) % 2 == 1
    objects, relation = [thing(*one)], None
    if layout == SINGLE:
        text = noun(*one)
    elif layout == INSIDE:
        text, relation = f"{noun(*one)} inside {noun(*two)}", "inside"
    elif flip:
        relation = "below" if layout == STACK else "right of"
        text = f"{noun(*two)} {'to the right of' if layout == SIDE else relation} {noun(*one)}"
        one, two = two, one
    else:
        relation = "above" if layout == STACK else "left of"
        text = f"{noun(*one)} {'to the left of' if layout == SIDE else relation} {noun(*two)}"
    if layout != SINGLE:
        objects = [thing(*one), thing(*two)]
    return {"prompt": f"{text} {ground}", "background": COLOUR_NAMES[bg], "relation": relation, "objects": objects}


def main():
    """Writes the 200 held-out prompts of the evaluation to standard output."""
    torch.manual_seed(2024)
    scenes = random_scenes(200, keep=held_out)
    lines = ",\n ".join(json.dumps(describe(scene)) for scene in scenes)
    sys.stdout.write(f"[{lines}]\n")


if __name__ == "__main__":
    main()
