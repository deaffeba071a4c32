"""`params.json`: names and shapes of all parameters of the published models, as a count and a SHA-256 for each network.

The networks are built on torch's `meta` device, which allocates nothing. The hash is that of the sorted lines
`name [shape]`, the text encoders' names without the `text_model.` that some versions of transformers write.
"""

import hashlib

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from common import ROOT, save_json, set_up

CROSS_ATTENTION = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
UNET_V1 = {**CROSS_ATTENTION, "block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": 8, "cross_attention_dim": 768}
UNET_V2 = {**UNET_V1, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
UNET_XL = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNET_REFINER = {
    **UNET_XL,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [384, 768, 1536, 1536],
    "attention_head_dim": [6, 12, 24, 24],
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}


def clip(hidden_size, layers, heads, projection_dim):
    """OpenAI's and OpenCLIP's text encoders have the same shape: four times as wide inside, 77 tokens."""
    return CLIPTextConfig(
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection_dim,
    )


def clip_l():
    return CLIPTextModel(clip(768, 12, 12, 768))


def open_clip_h():
    return CLIPTextModel(clip(1024, 23, 16, 512))


def open_clip_big_g():
    return CLIPTextModelWithProjection(clip(1280, 32, 20, 1280))


MODELS = {
    "v1.5": (UNET_V1, {"text_encoder": clip_l}),
    "v1.5-inpaint": ({**UNET_V1, "in_channels": 9}, {"text_encoder": clip_l}),
    "v2.1": (UNET_V2, {"text_encoder": open_clip_h}),
    "v2.1-base": (UNET_V2, {"text_encoder": open_clip_h}),
    "v2-inpaint": ({**UNET_V2, "in_channels": 9}, {"text_encoder": open_clip_h}),
    "xl": (UNET_XL, {"text_encoder": clip_l, "text_encoder_2": open_clip_big_g}),
    "xl-refiner": (UNET_REFINER, {"text_encoder_2": open_clip_big_g}),
    "xl-inpaint": ({**UNET_XL, "in_channels": 9}, {"text_encoder": clip_l, "text_encoder_2": open_clip_big_g}),
    "xl-turbo": (UNET_XL, {"text_encoder": clip_l, "text_encoder_2": open_clip_big_g}),
    "sd-turbo": (UNET_V2, {"text_encoder": open_clip_h}),
    "lcm": ({**UNET_V1, "time_cond_proj_dim": 256}, {"text_encoder": clip_l}),
}


def digest(model, prefix=""):
    """Count and hash of a network's parameters whose names start with `prefix`."""
    parameters = {name.removeprefix("text_model."): list(p.shape) for name, p in model.named_parameters()}
    parameters = {name: shape for name, shape in parameters.items() if name.startswith(prefix)}
    lines = "".join(f"{name} {shape}\n" for name, shape in sorted(parameters.items()))
    return {"count": len(parameters), "sha256": hashlib.sha256(lines.encode()).hexdigest()}


def write():
    """Builds every network of every published model."""
    with torch.device("meta"):
        vae = digest(AutoencoderKL(**VAE))
        tiny_vae = digest(AutoencoderTiny(), "decoder.")
        models = {
            version: {
                "unet": digest(UNet2DConditionModel(**unet)),
                "vae": vae,
                **{part: digest(make()) for part, make in encoders.items()},
            }
            for version, (unet, encoders) in MODELS.items()
        }
    save_json(ROOT / "params.json", models | {"taesd": {"tiny_vae": tiny_vae}})


if __name__ == "__main__":
    set_up()
    write()
