"""Checks of the tools and of the shipped folder. Run with `python test_demo_model.py`, or with pytest."""

import json
from pathlib import Path

import torch
from transformers import CLIPTokenizer

import model
import scenes
from evaluate import TEMPLATES, judge
from drawing import Painter

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "assets/demo-model"


def test_training_never_sees_a_held_out_combination():
    trained = scenes.random_scenes(20000)
    assert not scenes.held_out(trained).any()
    prompts = json.loads((HERE / "prompts.json").read_text())
    seen = {scenes.describe(row)["prompt"] for row in trained}
    assert len(prompts) == 200 and not seen & {p["prompt"] for p in prompts}


def test_captions_are_what_the_shipped_tokenizer_makes_of_their_text():
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    assert tokenizer.get_vocab() == model.VOCAB
    captions = scenes.Captioner(model.VOCAB, model.TOKENS)
    junk = set(captions.junk.tolist())
    for row in captions(scenes.random_scenes(500)).tolist():
        if not junk & set(row):
            text = tokenizer.decode(row, skip_special_tokens=True)
            assert tokenizer(text, padding="max_length", max_length=model.TOKENS).input_ids == row, text


def test_any_prompt_has_tokens():
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    for text in ("héllo 世界 🦀", "\x00\x7f", "A RED circle"):
        ids = tokenizer(text).input_ids
        # The end token is also CLIP's unknown token: it must stand at the end only.
        assert ids[0] == tokenizer.bos_token_id and ids.index(tokenizer.eos_token_id) == len(ids) - 1, text


def test_the_judge_accepts_drawings_and_refuses_shuffled_ones():
    assert list(TEMPLATES) == scenes.SHAPES
    rows = scenes.random_scenes(60, keep=scenes.held_out)
    pictures = ((Painter().scenes(rows) + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).double().numpy()
    wanted = [scenes.describe(row) for row in rows]
    right = [judge(picture, want) is None for picture, want in zip(pictures, wanted)]
    wrong = [judge(picture, want) is None for picture, want in zip(pictures[1:], wanted)]
    assert sum(right) >= 59 and sum(wrong) <= 1


if __name__ == "__main__":
    torch.manual_seed(0)
    for name, check in list(globals().items()):
        if name.startswith("test_"):
            check()
            print(f"{name}: ok")
