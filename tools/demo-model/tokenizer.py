"""A byte-level BPE vocabulary under CLIP's rules, in which every word of the scene language is one token."""

import json
from collections import Counter
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_symbols():
    """The printable character that stands for each byte, in CLIP's vocabulary order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(words):
    """Byte-pair merges that turn each word into one token, most frequent pair first (ties: alphabetical)."""
    split = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while pairs := Counter(pair for s in split.values() for pair in zip(s, s[1:])):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, symbols in split.items():
            merged, i = [], 0
            while i < len(symbols):
                step = 2 if tuple(symbols[i : i + 2]) == best else 1
                merged.append("".join(symbols[i : i + step]))
                i += step
            split[word] = merged
    return merges


def build(words):
    """`(vocab, merges)`: token -> id, and the list of merged pairs."""
    merges = learn_merges(words)
    symbols = byte_symbols()
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(pair) for pair in merges] + [START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    assert len(vocab) == len(tokens) and all(word + "</w>" in vocab for word in words)
    return vocab, merges


def save(folder, vocab, merges, length):
    """Writes the four files of a CLIP tokenizer folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    folder.joinpath("merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    config = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace", "model_max_length": length}
    write_json(folder / "tokenizer_config.json", {**special, **config, "add_prefix_space": False})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
