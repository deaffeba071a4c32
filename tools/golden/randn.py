"""`rng/`: two successive `torch.randn` calls of many lengths, from the CPU generator."""

import torch

from common import ROOT, generator, save_tensors

SEEDS = (0, 1, 42, 2**32 + 5)
LENGTHS = (1, 5, 15, 16, 17, 37, 64, 16384)


def write():
    """Writes `randn.safetensors`: `seed{S}_n{N}_call{0,1}`."""
    tensors = {}
    for seed in SEEDS:
        for length in LENGTHS if seed >= 42 else LENGTHS[:-1]:
            source = generator(seed)
            for call in range(2):
                tensors[f"seed{seed}_n{length}_call{call}"] = torch.randn(length, generator=source)
    save_tensors(ROOT / "rng" / "randn.safetensors", tensors, "in the names")
