"""`bf16.json`: how far each network of `models/` in bf16 is from itself in f32, in diffusers, relative to the largest result.

The Rust library's products of bf16 must not be further from the same f32 results.
"""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel

import common
import stages


def cases(path):
    """What [`stages.save_cases`] wrote."""
    found = {}
    for key, value in load_file(path).items():
        case, name = key.split(".", 1)
        found.setdefault(case, {})[name] = value
    return found


def error(found, expected):
    return ((found.float() - expected).abs().max() / expected.abs().max()).item()


def load(kind, folder):
    return kind.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()


def errors(folder):
    """Of each network, the largest error of its cases."""
    golden = folder / "golden"
    unet = load(UNet2DConditionModel, folder / "unet")
    vae = load(AutoencoderKL, folder / "vae")
    found = {"unet": [], "decoded": [], "mean": []}
    for case in cases(golden / "unet.safetensors").values():
        inputs = {key: case[key] for key in case if key in INPUTS or key.startswith("res.")}
        found["unet"].append(error(stages.run_unet(unet, inputs), case["out"]))
    for case in cases(golden / "vae.safetensors").values():
        moments, decoded = stages.vae_outputs(vae, case["image"], case["latents"])
        found["mean"].append(error(moments.chunk(2, dim=1)[0], case["mean"]))
        found["decoded"].append(error(decoded, case["decoded"]))
    if (folder / "text_encoder").is_dir():
        text = load(CLIPTextModel, folder / "text_encoder")
        found["text"] = [
            error(text(case["ids"]).last_hidden_state, case["last"])
            for case in cases(golden / "text.safetensors").values()
        ]
    return {network: max(values) for network, values in found.items()}


INPUTS = {"sample", "timestep", "context", "text_embeds", "time_ids", "timestep_cond", "class_labels"}


def write():
    folders = sorted(path for path in (common.ROOT / "models").iterdir() if path.is_dir())
    common.save_json(common.ROOT / "bf16.json", {folder.name: errors(folder) for folder in folders})
