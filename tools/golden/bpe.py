"""CLIP's byte-pair vocabulary, in full and cut down to a thousand tokens, as Hugging Face tokenizer folders."""

import gzip
import json
from pathlib import Path

import open_clip
from transformers import CLIPTokenizer

from common import save_json

START, END, BANG = "<|startoftext|>", "<|endoftext|>", "!"
MERGES = 49152 - 256 - 2
TINY_MERGES = 1000 - 512 - 2
STYLES = ("objects", "override", "decoder")


def vocabulary(merge_count=MERGES):
    """`(vocab, merges)` of OpenAI's CLIP with its first `merge_count` merges: token -> id, and lines `left right`."""
    packed = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")[1 : merge_count + 1]
    symbols = list(open_clip.tokenizer.bytes_to_unicode().values())
    tokens = symbols + [s + "</w>" for s in symbols] + [m.replace(" ", "") for m in merges] + [START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def special_files(vocab, pad, style):
    """`(tokenizer_config, special_tokens_map)` in one of the styles found in published repositories.

    - `objects`: special tokens spelled out as objects in both files (v1.5).
    - `override`: the same, but `tokenizer_config.json` pads with the end token; `special_tokens_map.json` wins (v2.1).
    - `decoder`: an `added_tokens_decoder` table in `tokenizer_config.json` (XL).
    """
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    roles = {"bos_token": START, "eos_token": END, "unk_token": END}
    objects = {role: {"content": token, **flags} for role, token in roles.items()}
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    config |= {"tokenizer_class": "CLIPTokenizer"}
    if style == "decoder":
        normalized = {START: True, END: False, pad: False}
        table = {t: {"content": t, **flags, "normalized": n, "special": True} for t, n in normalized.items()}
        config["added_tokens_decoder"] = {str(vocab[t]): table[t] for t in sorted(table, key=vocab.get)}
        config |= {"pad_token": pad, **roles}
    else:
        config |= {role: {"__type": "AddedToken", **token} for role, token in objects.items()}
        config["pad_token"] = END if style == "override" else pad
    return config, {**objects, "pad_token": pad}


def write_vocabulary(vocab_path, merges_path, merge_count=MERGES):
    """Writes `vocab.json` and `merges.txt` under the given names."""
    vocab, merges = vocabulary(merge_count)
    vocab_path.write_text(json.dumps(vocab, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    merges_path.write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def write_folder(folder, pad=END, style="objects", merge_count=TINY_MERGES):
    """Writes a tokenizer folder that pads with `pad`; see [`special_files`] for the styles."""
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(folder / "vocab.json", folder / "merges.txt", merge_count)
    config, special = special_files(vocabulary(merge_count)[0], pad, style)
    save_json(folder / "tokenizer_config.json", config)
    save_json(folder / "special_tokens_map.json", special)


def encode(tokenizer: CLIPTokenizer, text):
    """The 77 ids the pipelines feed to the text encoder."""
    return tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
