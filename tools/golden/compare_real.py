"""Compares this project with diffusers on a real model, number by number.

    python tools/golden/compare_real.py export MODEL reference.safetensors [--prompt TEXT ...]
    sd-worker generate ... --dump-tensors ours.safetensors      (`export` prints the whole command)
    python tools/golden/compare_real.py compare ours.safetensors reference.safetensors

`export` runs diffusers in f32 on a folder or a Hugging Face repository and writes the text's embeddings, the initial
latents, the latents after every scheduler step and the picture under the names of `--dump-tensors`. `compare` prints
max|d| / max|reference| of every tensor; its exit code is 1 when one is above the tolerance, missing or mis-shaped.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "0")

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

import e2e
from common import relative_error, save_tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    export_parser = commands.add_parser("export", help="run diffusers on a real model")
    export_parser.add_argument("model", help="diffusers folder or Hugging Face repository id")
    export_parser.add_argument("output", type=Path)
    export_parser.add_argument("--device", default="cpu", help="where the networks run (default: cpu)")
    add_request(export_parser)
    export_parser.set_defaults(command=export)
    compare_parser = commands.add_parser("compare", help="compare two files")
    compare_parser.add_argument("ours", type=Path)
    compare_parser.add_argument("reference", type=Path)
    compare_parser.add_argument("--tolerance", type=float, default=1e-3)
    compare_parser.set_defaults(command=compare)
    arguments = parser.parse_args()
    sys.exit(arguments.command(arguments))


def add_request(parser):
    """The options of `sd-worker generate` that change the numbers, under the same names."""
    parser.add_argument("--prompt", default="a photo of an astronaut riding a horse on mars")
    parser.add_argument("--negative-prompt")
    parser.add_argument("--num-inference-steps", "--steps", type=int, default=3, metavar="N")
    parser.add_argument("--guidance-scale", type=float, default=7.5, metavar="F")
    parser.add_argument("--guidance-rescale", type=float, metavar="F")
    parser.add_argument("--scheduler", choices=e2e.SCHEDULERS)
    parser.add_argument("--eta", type=float, metavar="F")
    parser.add_argument("--clip-skip", type=int, metavar="N")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--seed", type=int, default=42)


def export(arguments):
    """Runs diffusers, writes the tensors, prints our command."""
    torch.set_grad_enabled(False)
    pipeline = DiffusionPipeline.from_pretrained(arguments.model, dtype=torch.float32).to(arguments.device)
    # Both change the picture after it is made.
    for part in ("safety_checker", "watermark"):
        if hasattr(pipeline, part):
            setattr(pipeline, part, None)
    others = ("model", "output", "device", "command")
    request = {k: v for k, v in vars(arguments).items() if k not in others and v is not None}
    e2e.restore_text_model()
    tensors = e2e.run(pipeline, request)
    del tensors["image_u8"]
    save_tensors(arguments.output, {key: value.cpu().float() for key, value in tensors.items()}, arguments.seed)
    print(our_command(arguments.model, request))
    return 0


def our_command(model, request):
    """The `sd-worker` command for the same picture."""
    options = {key: value for key, value in request.items() if key != "prompt"}
    options["steps"] = options.pop("num_inference_steps")
    words = ["sd-worker", "generate", request["prompt"], "--model", model, "--dtype", "f32"]
    words += [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return shlex.join([*words, "--dump-tensors", "ours.safetensors"])


def compare(arguments):
    """Prints every tensor's error; 1 when the files differ by more than the tolerance."""
    ours, reference = load_file(arguments.ours), load_file(arguments.reference)
    failed = False
    for key in sorted(ours.keys() | reference.keys()):
        verdict, good = difference(ours.get(key), reference.get(key), arguments.tolerance)
        failed |= not good
        print(f"{'ok  ' if good else 'FAIL'}  {key:<24} {verdict}")
    return int(failed or not reference)


def difference(ours, reference, tolerance):
    """`(what to print, whether it is good)` of one tensor."""
    if ours is None or reference is None:
        return ("missing in ours" if ours is None else "missing in the reference"), False
    if ours.shape != reference.shape:
        return f"{list(ours.shape)} instead of {list(reference.shape)}", False
    if not reference.any():
        return "all zero in the reference", not ours.any()
    error = relative_error(ours, reference)
    return f"{error:.1e}", error <= tolerance


if __name__ == "__main__":
    main()
