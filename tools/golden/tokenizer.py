"""`tokenizer/`: the real CLIP vocabulary and what transformers makes of sixty strings."""

import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

import bpe
from common import ROOT, fresh, save_json_lines

LONG = "a highly detailed painting of a castle on a hill above a river, " * 8

TEXTS = [
    # Plain prompts, white space and case.
    "",
    " ",
    "a",
    "A photo of an astronaut riding a horse on mars",
    "hello world",
    "  leading and trailing  ",
    "tabs\tand\nnew lines\r\nand\u00a0no-break\u2003em\u3000ideographic spaces",
    "MiXeD CaSe WORDS",
    "a  b   c",
    "zero\u200bwidth\u200djoiner",
    "bell\u0007 and nul\u0000 inside",
    "\ufeffbyte order mark",
    # Punctuation and the pad token of v2 and XL.
    "!",
    "!!",
    "!!!!!!!!!!",
    "hello!",
    "hello !",
    "wow!wow",
    "?!?",
    "(masterpiece:1.2), [best quality], {8k}",
    "a, b; c: d. e/f\\g|h",
    "--ar 16:9 --v 5",
    "http://example.com/a?b=c&d=e#f",
    "a_b_c snake_case kebab-case",
    "$100 & 50% off @home #tag ~ ^ * + = < >",
    "\"quoted\" 'single' `back`",
    "“curly” ‘quotes’ – en — em …",
    # Apostrophes and contractions.
    "'s",
    "it's the dog's",
    "don't can't won't",
    "I'm you're we've he'll she'd",
    "rock'n'roll",
    "O'Brien’s",
    "'S 'T 'RE upper contractions IT'S",
    # Numbers.
    "0",
    "1234567890",
    "3.14159 1e-5 0x1F",
    "4k 8K 1080p 35mm f/1.8",
    "½ ² ³ ⅷ",
    "１２３ ٣٤٥",
    # Other scripts, composed and decomposed forms, symbols.
    "un café à Zürich, naïve façade",
    "cafe\u0301 nai\u0308ve",
    "Å \u212b A\u030a",
    "ﬁne ligature ﬀ",
    "Straße ẞ",
    "İstanbul ıI",
    "Москва зимой",
    "Ελληνικά Σίσυφος ΣΑΣ",
    "一只可爱的猫",
    "東京タワーの夜景、夕焼け",
    "서울의 밤",
    "\u1112\u1161\u11ab decomposed",
    "مدينة قديمة",
    "שלום עולם",
    "हिन्दी में",
    "ภาษาไทย",
    "🐱",
    "a 🚀 over the 🌙!",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🇫🇷",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒻𝒶𝓃𝒸𝓎",
    "\U0001f9ff\U000e0041",
    # Special tokens written in the prompt.
    "<|startoftext|>",
    "<|endoftext|>",
    "a <|endoftext|> b",
    "<|startoftext|>cat<|endoftext|>",
    "<|ENDOFTEXT|> <|StartOfText|>",
    "<|endoftext",
    "<unk> [PAD] </w> a</w>",
    # Around and beyond 77 tokens.
    " ".join(["cat"] * 74),
    " ".join(["cat"] * 75),
    " ".join(["cat"] * 76),
    " ".join(["cat"] * 200),
    LONG,
    "supercalifragilisticexpialidocious" * 5,
    "!" * 90,
    "東" * 60,
]


def write():
    """Writes `clip-vocab.json`, `clip-merges.txt`, `cases.json` and `styles.json`."""
    folder = fresh(ROOT / "tokenizer")
    bpe.write_vocabulary(folder / "clip-vocab.json", folder / "clip-merges.txt")
    pad_eos, pad_bang = load(bpe.END, "decoder"), load(bpe.BANG, "decoder")
    cases = [
        {"text": text, "ids_pad_eos": bpe.encode(pad_eos, text), "ids_pad_bang": bpe.encode(pad_bang, text)}
        for text in TEXTS
    ]
    save_json_lines(folder / "cases.json", cases)
    save_json_lines(folder / "styles.json", styles())


def styles():
    """How each published style of the special-token files reads texts that hold special tokens."""
    texts = ["hello!", "a!!b !", "<|endoftext|>", "<|EndOfText|>", "<|STARTOFTEXT|>x", "x<|endoftext|>!"]
    vocab, _ = bpe.vocabulary()
    for style in bpe.STYLES:
        for pad in (bpe.END, bpe.BANG):
            config, special = bpe.special_files(vocab, pad, style)
            tokenizer = load(pad, style)
            cases = [{"text": text, "ids": bpe.encode(tokenizer, text)} for text in texts]
            yield {"tokenizer_config": config, "special_tokens_map": special, "cases": cases}


def load(pad, style):
    """transformers' tokenizer for a folder with the full vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        bpe.write_folder(Path(folder), pad, style, bpe.MERGES)
        return CLIPTokenizer.from_pretrained(folder)
