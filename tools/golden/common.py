"""What every generator shares: where fixtures go, how they are written, and one deterministic torch."""

import json
import os
import shutil
import zlib
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import diffusers
import torch
import transformers
from safetensors.torch import save

ROOT = Path(__file__).resolve().parents[2] / "tests" / "golden"


def set_up():
    """One thread and no autograd: the same bytes on every run."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def fresh(folder):
    """Empties a fixture folder, so that nothing stale survives; returns it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def save_tensors(path, tensors, seed):
    """Writes a safetensors file whose header names the versions and the seed (or the rule that gives it)."""
    header = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "seed": str(seed),
        "format": "pt",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sorted_header(save({k: v.detach().contiguous().clone() for k, v in tensors.items()}, header)))


def sorted_header(data):
    """The same safetensors file with its header's keys in order: the library writes the metadata in a random one."""
    length = int.from_bytes(data[:8], "little")
    text = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def save_json(path, value):
    """Writes readable JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def save_json_lines(path, values):
    """Writes a JSON array with one compact element a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in values)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def generator(seed):
    """A CPU generator, the only source of randomness here. `seed` is a number, or a name that is hashed into one."""
    return torch.Generator("cpu").manual_seed(zlib.crc32(seed.encode()) if isinstance(seed, str) else seed)


def randn(name, *shape):
    """Normal numbers that depend on `name` alone."""
    return torch.randn(*shape, generator=generator(name))


def relative_error(value, reference):
    """The metric of every tolerance: max|d| / max|ref|, in f64."""
    value, reference = value.double(), reference.double()
    return ((value - reference).abs().max() / reference.abs().max()).item()
