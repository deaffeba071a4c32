"""`prompts/`: weighted, long and changing prompts, as the formulas of the web UI and of ComfyUI encode them.

Each case has the request, and for some steps what its prompts come to, read by hand: the pieces of each text with their
weights. Windows and weights are computed here by the published rules, the encoders are transformers'.
"""

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from common import ROOT, fresh, save_json, save_tensors

BREAK = None
ROOM = 75

SIZE = {"width": 32, "height": 40, "seed": 7, "num_inference_steps": 4}
A1111 = SIZE | {"prompt_weighting": "a1111"}
COMFYUI = SIZE | {"prompt_weighting": "comfyui"}

# Neither its windows nor its words end where a window of 75 tokens does.
CASTLE = "a highly detailed painting of a castle on a hill above a river, "
FOREST = "trees in autumn leaves below mountains without any mark between them "


def both(positive, negative=(("", 1),)):
    """Pieces for a model with one encoder, or the same pieces for two."""
    return [list(positive)], [list(negative)]


# name -> (family, request, {step: (pieces of the positive texts, of the negative ones or None for zeros)})
CASES = {
    "sd15-a1111-weights": (
        "sd15",
        A1111 | {"prompt": "a (red:1.3) cat, [blurry] ((sharp)) (dog:-0.4)!", "negative_prompt": "a (bad [dog]:1.5)"},
        {
            0: both(
                [("a ", 1), ("red", 1.3), (" cat, ", 1), ("blurry", 1 / 1.1), (" ", 1), ("sharp", 1.21)]
                + [(" ", 1), ("dog", -0.4), ("!", 1)],
                [("a ", 1), ("bad ", 1.5), ("dog", 1.5 / 1.1)],
            )
        },
    ),
    # Windows end after commas, and where no comma is near after 75 tokens.
    "sd15-a1111-long": (
        "sd15",
        A1111 | {"prompt": CASTLE * 3 + "(" + FOREST * 3 + ":1.2)" + CASTLE},
        {0: both([(CASTLE * 3, 1), (FOREST * 3, 1.2), (CASTLE, 1)])},
    ),
    "sd15-a1111-break": (
        "sd15",
        A1111 | {"prompt": "BREAK a cat BREAK (a dog BREAK a bird:0.8) BREAKFAST", "negative_prompt": CASTLE * 4},
        {
            0: both(
                [BREAK, ("a cat", 1), BREAK, ("a dog", 0.8), BREAK, ("a bird", 0.8), (" BREAKFAST", 1)],
                [(CASTLE * 4, 1)],
            )
        },
    ),
    "sd15-a1111-edit": (
        "sd15",
        A1111 | {"prompt": "a [cat:(dog:1.2):0.5] and a [red|blue] ball", "negative_prompt": f"[{CASTLE * 2}:3]"},
        {
            0: both([("a cat and a red ball", 1)]),
            1: both([("a cat and a blue ball", 1)]),
            2: both([("a ", 1), ("dog", 1.2), (" and a red ball", 1)]),
            3: both([("a ", 1), ("dog", 1.2), (" and a blue ball", 1)], [(CASTLE * 2, 1)]),
        },
    ),
    # Layers are left out of both prompts.
    "sd15-a1111-clip-skip": (
        "sd15",
        A1111 | {"prompt": "a (cat:1.4)", "negative_prompt": "a (dog:0.7)", "clip_skip": 1},
        {0: both([("a ", 1), ("cat", 1.4)], [("a ", 1), ("dog", 0.7)])},
    ),
    # Padded with `!`.
    "sd21-a1111": (
        "sd21",
        A1111 | {"prompt": CASTLE * 3 + "(a cat!:1.5)", "negative_prompt": "[dog]!"},
        {0: both([(CASTLE * 3, 1), ("a cat!", 1.5)], [("dog", 1 / 1.1), ("!", 1)])},
    ),
    # The encoders' texts fill three windows and one.
    "sdxl-a1111": (
        "sdxl",
        A1111 | {"prompt": CASTLE * 5, "prompt_2": "oil (on canvas:1.3)!", "negative_prompt": "(photo)"},
        {
            0: (
                [[(CASTLE * 5, 1)], [("oil ", 1), ("on canvas", 1.3), ("!", 1)]],
                [[("photo", 1.1)], [("photo", 1.1)]],
            )
        },
    ),
    # Zeros for the negative prompt, as many as there are windows.
    "sdxl-a1111-zeros": (
        "sdxl",
        A1111 | {"prompt": "(a cat:1.2) BREAK a [dog|bird]"},
        {
            step: ([[("a cat", 1.2), BREAK, (animal, 1)]] * 2, None)
            for step, animal in [(0, "a dog"), (1, "a bird"), (2, "a dog")]
        },
    ),
    "sd15-comfyui-weights": (
        "sd15",
        COMFYUI | {"prompt": "a (red:1.3) cat, [blurry] ((sharp)) (dog:-0.4)!", "negative_prompt": "a (bad (dog:2):1.5)"},
        {
            0: both(
                [("a ", 1), ("red", 1.3), (" cat, [blurry] ", 1), ("sharp", 1.21), (" ", 1), ("dog", -0.4), ("!", 1)],
                [("a ", 1), ("bad ", 1.5), ("dog", 2)],
            )
        },
    ),
    # Words stay whole, but for the one of very many tokens.
    "sd15-comfyui-long": (
        "sd15",
        COMFYUI | {"prompt": FOREST * 3 + f"({CASTLE * 2}\n{'zyxwvu' * 20}:0.6)", "negative_prompt": "a BREAK b"},
        {0: both([(FOREST * 3, 1), (f"{CASTLE * 2}\n{'zyxwvu' * 20}", 0.6)], [("a BREAK b", 1)])},
    ),
    "sd15-comfyui-edit": (
        "sd15",
        COMFYUI | {"prompt": "a [(cat:1.2)::1] [sat]", "clip_skip": 1},
        {0: both([("a ", 1), ("cat", 1.2), (" [sat]", 1)]), 1: both([("a  [sat]", 1)]), 3: both([("a  [sat]", 1)])},
    ),
    "sd21-comfyui": (
        "sd21",
        COMFYUI | {"prompt": "(a cat!:1.5) on a mat", "negative_prompt": FOREST * 3},
        {0: both([("a cat!", 1.5), (" on a mat", 1)], [(FOREST * 3, 1)])},
    ),
    "sdxl-comfyui": (
        "sdxl",
        COMFYUI | {"prompt": "a (cat:1.3) " + FOREST * 3, "negative_prompt": "(photo:0.5)", "negative_prompt_2": "oil!"},
        {0: ([[("a ", 1), ("cat", 1.3), (" " + FOREST * 3, 1)]] * 2, [[("photo", 0.5)], [("oil!", 1)]])},
    ),
}


def write():
    """Writes `<case>.json`, the family and the request, and `<case>.safetensors`, the conditioning of some steps."""
    folder = fresh(ROOT / "prompts")
    encoders = {family: load(family) for family in sorted({family for family, _, _ in CASES.values()})}
    for name, (family, request, steps) in CASES.items():
        tensors = case(encoders[family], request, steps)
        save_json(folder / f"{name}.json", {"model": family, "request": request})
        save_tensors(folder / f"{name}.safetensors", tensors, "none")


def load(family):
    """The text encoders of a tiny model: tokenizer and network, and whether the family is XL."""
    folder = ROOT / "models" / family
    xl = family.startswith("sdxl")
    parts = [("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)] if xl else [("", CLIPTextModel)]
    return [
        Encoder(
            CLIPTokenizer.from_pretrained(folder / f"tokenizer{part}"),
            network.from_pretrained(folder / f"text_encoder{part}").eval(),
            xl,
        )
        for part, network in parts
    ]


def case(encoders, request, steps):
    """The tensors of a case, under keys `step.tensor`. All steps and both sides have as many windows."""
    comfyui, skip = request["prompt_weighting"] == "comfyui", request.get("clip_skip", 0)
    texts = [text for sides in steps.values() for side in sides if side for text in zip(encoders, side)]
    count = max(len(encoder.windows(pieces, comfyui)) for encoder, pieces in texts)
    tensors = {}
    for step, sides in steps.items():
        for prefix, side in zip(["", "negative_"], sides):
            if side is None:
                embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
            else:
                outputs = [e.encode(pieces, count, comfyui, skip) for e, pieces in zip(encoders, side, strict=True)]
                embeds, pooled = torch.cat([rows for rows, _ in outputs], dim=-1), outputs[-1][1]
            tensors[f"{step:03}.{prefix}prompt_embeds"] = embeds
            if encoders[0].xl:
                tensors[f"{step:03}.{prefix}pooled"] = pooled
    return tensors


class Encoder:
    """A tokenizer and a network."""

    def __init__(self, tokenizer, network, xl):
        self.tokenizer, self.network, self.xl = tokenizer, network, xl
        self.comma = tokenizer.get_vocab()[",</w>"]

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def encode(self, pieces, count, comfyui, skip):
        """`[1, count * 77, c]`, and the pooled row of the first window."""
        windows = self.windows(pieces, comfyui)
        windows += [[]] * (count - len(windows))
        empty, _ = self.run([], skip)
        rows, pooled = [], []
        for window in windows:
            z, row = self.run([token for token, _ in window], skip)
            weights = torch.ones(z.shape[1])
            weights[1 : 1 + len(window)] = torch.tensor([weight for _, weight in window])
            weights = weights[None, :, None]
            if comfyui:
                z = torch.where(weights == 1, z, empty + weights * (z - empty))
            else:
                weighted = z * weights
                z = weighted * (z.mean() / weighted.mean())
            rows.append(z)
            pooled.append(row)
        return torch.cat(rows, dim=1), pooled[0]

    def run(self, tokens, skip):
        """The rows of one window before weighting, and its pooled row."""
        tokenizer = self.tokenizer
        ids = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * (ROOM + 2 - len(ids))
        out = self.network(torch.tensor([ids]), output_hidden_states=True)
        if self.xl:
            return out.hidden_states[-2 - skip], out.text_embeds if "text_embeds" in out else out.pooler_output
        norm = getattr(self.network, "text_model", self.network).final_layer_norm
        return norm(out.hidden_states[-1 - skip]), out.pooler_output

    def windows(self, pieces, comfyui):
        """Lists of (token, weight), 75 at most."""
        return self.comfyui_windows(pieces) if comfyui else self.a1111_windows(pieces)

    def a1111_windows(self, pieces):
        """Between breaks: 75 tokens each, less what follows a comma among the last 20 of them."""
        sections = [[]]
        for piece in pieces:
            if piece is BREAK:
                sections.append([])
            else:
                sections[-1] += [(token, piece[1]) for token in self.ids(piece[0])]
        windows = []
        for section in sections:
            while len(section) > ROOM:
                commas = [i for i in range(ROOM - 20, ROOM) if section[i][0] == self.comma]
                cut = commas[-1] + 1 if commas and section[ROOM][0] != self.comma else ROOM
                windows.append(section[:cut])
                section = section[cut:]
            windows.append(section)
        return windows

    def comfyui_windows(self, pieces):
        """As many words as fit; only words of 8 tokens and more are parted."""
        windows = [[]]
        for text, weight in pieces:
            for word in text.replace("\n", " ").split(" "):
                tokens = [(token, weight) for token in self.ids(word)]
                left = ROOM - len(windows[-1])
                if len(tokens) <= left:
                    windows[-1] += tokens
                elif len(tokens) < 8:
                    windows.append(tokens)
                else:
                    windows[-1] += tokens[:left]
                    windows += [tokens[i : i + ROOM] for i in range(left, len(tokens), ROOM)]
        return windows
