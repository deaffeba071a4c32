"""The networks of the demo model (Stable Diffusion's own, small) and the folder they are shipped in."""

import json
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

import scenes
import tokenizer

IMAGE, FACTOR, TOKENS = 128, 8, 77
VOCAB, MERGES = tokenizer.build(scenes.words())


def autoencoder():
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=IMAGE,
        scaling_factor=1.0,
        force_upcast=False,
    )


def unet():
    return UNet2DConditionModel(
        sample_size=IMAGE // FACTOR,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 80, 112),
        layers_per_block=1,
        attention_head_dim=(3, 5, 7),
        cross_attention_dim=128,
        norm_num_groups=16,
    )


def text_encoder():
    last = len(VOCAB) - 1
    config = CLIPTextConfig(
        vocab_size=len(VOCAB),
        hidden_size=128,
        intermediate_size=256,
        projection_dim=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=last - 1,
        eos_token_id=last,
        pad_token_id=last,
    )
    return CLIPTextModel(config)


def scheduler():
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def export(folder, vae, net, text, scaling_factor):
    """Writes a complete diffusers folder with f16 weights."""
    folder = Path(folder)
    vae.register_to_config(scaling_factor=scaling_factor)
    weights_file = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}
    for name, network in (("vae", vae), ("unet", net), ("text_encoder", text)):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        # Stable Diffusion's text encoders carry their class's old prefix.
        prefix = "text_model." if name == "text_encoder" else ""
        weights = {
            prefix + key: tensor.detach().cpu().to(torch.float16).contiguous()
            for key, tensor in network.state_dict().items()
        }
        save_file(weights, target / f"{weights_file[name]}.safetensors", metadata={"format": "pt"})
    for name, network in (("vae", vae), ("unet", net)):
        config = json.loads(network.to_json_string())
        tokenizer.write_json(folder / name / "config.json", {k: v for k, v in config.items() if k != "_name_or_path"})
    tokenizer.write_json(folder / "text_encoder" / "config.json", text_config(text.config))
    tokenizer.save(folder / "tokenizer", VOCAB, MERGES, TOKENS)
    scheduler().save_pretrained(folder / "scheduler")
    tokenizer.write_json(folder / "model_index.json", {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        # Read by sd-config; diffusers passes over it.
        "sd_defaults": {"num_inference_steps": 25, "guidance_scale": 5.0},
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })  # fmt: skip


def text_config(config):
    """The keys that Stable Diffusion's own text_encoder/config.json has."""
    keys = (
        "model_type vocab_size hidden_size intermediate_size projection_dim num_hidden_layers num_attention_heads "
        "max_position_embeddings hidden_act layer_norm_eps attention_dropout initializer_range initializer_factor "
        "bos_token_id eos_token_id pad_token_id"
    ).split()
    return {"architectures": ["CLIPTextModel"], **{key: getattr(config, key) for key in keys}, "torch_dtype": "float16"}
