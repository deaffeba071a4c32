"""Writes every fixture: `python tools/golden/generate.py [--only NAME ...] [--output FOLDER]`."""

import argparse
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import common

# Module -> what it writes. The end-to-end cases and bf16 need the models.
FIXTURES = {
    "tokenizer": "tokenizer/",
    "randn": "rng/",
    "schedulers": "scheduler/ (always in tests/golden)",
    "params": "params.json",
    "models": "models/",
    "variants": "unets/, vaes/, clips/",
    "tiling": "tiling/",
    "tiny_vaes": "tiny_vaes/",
    "bf16": "bf16.json",
    "e2e": "e2e/",
    "images": "images/",
    "e2e_images": "e2e_images/",
    "prompts": "prompts/",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = "\n".join(f"  {name:<11} {writes}" for name, writes in FIXTURES.items())
    parser.add_argument("--only", nargs="+", choices=FIXTURES, default=list(FIXTURES), metavar="NAME")
    parser.add_argument("--output", type=Path, default=common.ROOT, metavar="FOLDER", help="default: tests/golden")
    arguments = parser.parse_args()
    # Before the other modules are imported, which take it from there.
    common.ROOT = arguments.output
    common.set_up()
    warnings.filterwarnings("ignore")
    for name in (name for name in FIXTURES if name in arguments.only):
        print(name, flush=True)
        if name == "schedulers":
            subprocess.run([sys.executable, Path(__file__).with_name("schedulers.py")], check=True)
        else:
            importlib.import_module(name).write()


if __name__ == "__main__":
    main()
