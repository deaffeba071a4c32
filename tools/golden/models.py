"""`models/`: a tiny model of every family, in the diffusers folder layout with the keys of the published configs.

The published files leave out keys added to diffusers later, and so do these: the class defaults count.
"""

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import bpe
import gain
import stages
from common import ROOT, fresh, randn, save_json, save_tensors

DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"

NOISE = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000}
SD_SCHEDULER = NOISE | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None}
XL_SCHEDULER = SD_SCHEDULER | {
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "skip_prk_steps": True,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
LCM_SCHEDULER = NOISE | {
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
    "trained_betas": None,
}


def scheduler(class_name, config, **changes):
    """A `scheduler_config.json`."""
    return {"_class_name": class_name, "_diffusers_version": "0.19.0"} | config | changes


def clip(hidden, layers, act="quick_gelu", projection=None, **changes):
    """A text encoder's `config.json`. The published token ids are not the tokenizer's; 2 selects the old EOS rule."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": act,
        "hidden_size": hidden,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 2 * hidden,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": projection or 512,
        "vocab_size": 1000,
    } | changes


def unet(channels, down, up, layers, heads, context, **changes):
    """A `unet/config.json`. `heads` is called attention_head_dim in every published file."""
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.19.0",
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": channels,
        "center_input_sample": False,
        "cross_attention_dim": context,
        "down_block_types": down,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": layers,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 2,
        "out_channels": 4,
        "sample_size": 8,
        "up_block_types": up,
    } | changes


def sd_unet(channels, layers, heads, context, **changes):
    """The four-block layout of v1 and v2."""
    down, up = [CROSS_DOWN] * 3 + [DOWN], [UP] + [CROSS_UP] * 3
    return unet(channels, down, up, layers, heads, context, **changes)


def xl_unet(channels, layers, depths, heads, context, pooled, ids=6, down=(DOWN, CROSS_DOWN, CROSS_DOWN), **changes):
    """The layout of XL: no attention at full resolution, size and crop conditioning of 8 numbers an id."""
    up = [block.replace("Down", "Up") for block in reversed(down)]
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": pooled + 8 * ids,
        "transformer_layers_per_block": depths,
        "upcast_attention": None,
        "use_linear_projection": True,
    }
    return unet(channels, list(down), up, layers, heads, context, **added, **changes)


def vae(channels=(4, 8, 8, 8), layers=1, **changes):
    """A `vae/config.json`."""
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.19.0",
        "act_fn": "silu",
        "block_out_channels": list(channels),
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": layers,
        "norm_num_groups": 2,
        "out_channels": 3,
        "sample_size": 64,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    } | changes


XL_VAE = {"force_upcast": True, "scaling_factor": 0.13025}
V2 = {"dual_cross_attention": False, "only_cross_attention": False, "num_class_embeds": None}
V2 |= {"use_linear_projection": True}

# Per family: the pipeline class, the components' configs, and per tokenizer the padding token and the file style.
# The families that repeat another's architecture are kept smaller.
FAMILIES = {
    "sd15": {
        "pipeline": "StableDiffusionPipeline",
        "scheduler": scheduler("PNDMScheduler", SD_SCHEDULER, skip_prk_steps=True),
        "tokenizer": (bpe.END, "objects"),
        "text_encoder": clip(16, 3),
        "unet": sd_unet([4, 6, 8, 8], 2, 2, 16),
        "vae": vae((4, 6, 8, 8), 2),
    },
    "sd15-inpaint": {
        "pipeline": "StableDiffusionInpaintPipeline",
        "scheduler": scheduler("DDIMScheduler", SD_SCHEDULER),
        "tokenizer": (bpe.END, "objects"),
        "text_encoder": clip(16, 2),
        "unet": sd_unet([4, 8, 8, 8], 1, 2, 16, in_channels=9),
        "vae": vae(),
    },
    "sd21": {
        "pipeline": "StableDiffusionPipeline",
        "scheduler": scheduler("DDIMScheduler", SD_SCHEDULER, prediction_type="v_prediction", skip_prk_steps=True),
        "tokenizer": (bpe.BANG, "override"),
        "text_encoder": clip(16, 2, "gelu"),
        "unet": sd_unet([4, 8, 8, 8], 1, [1, 2, 4, 4], 16, **V2, upcast_attention=True),
        "vae": vae(),
    },
    "sd2-inpaint": {
        "pipeline": "StableDiffusionInpaintPipeline",
        "scheduler": scheduler("PNDMScheduler", SD_SCHEDULER, skip_prk_steps=True),
        "tokenizer": (bpe.BANG, "override"),
        "text_encoder": clip(16, 2, "gelu"),
        "unet": sd_unet([4, 8, 8, 8], 1, [1, 2, 4, 4], 16, **V2, in_channels=9),
        "vae": vae(),
    },
    "sd-turbo": {
        "pipeline": "StableDiffusionPipeline",
        "scheduler": scheduler("EulerDiscreteScheduler", XL_SCHEDULER, timestep_spacing="trailing"),
        "tokenizer": (bpe.BANG, "objects"),
        "text_encoder": clip(16, 2, "gelu"),
        "unet": sd_unet([4, 8, 8, 8], 1, [1, 2, 4, 4], 16, **V2),
        "vae": vae(),
    },
    "lcm": {
        "pipeline": "LatentConsistencyModelPipeline",
        "scheduler": scheduler("LCMScheduler", LCM_SCHEDULER),
        "tokenizer": (bpe.END, "objects"),
        "text_encoder": clip(16, 2),
        "unet": sd_unet([4, 8, 8, 8], 1, 2, 16, time_cond_proj_dim=16),
        "vae": vae(),
    },
    "sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "scheduler": scheduler("EulerDiscreteScheduler", XL_SCHEDULER),
        "tokenizer": (bpe.END, "decoder"),
        "tokenizer_2": (bpe.BANG, "decoder"),
        "text_encoder": clip(16, 3),
        "text_encoder_2": clip(20, 3, "gelu", 12),
        "unet": xl_unet([4, 8, 12], 1, [1, 2, 3], [1, 2, 4], 36, 12),
        "vae": vae(**XL_VAE),
    },
    "sdxl-inpaint": {
        "pipeline": "StableDiffusionXLInpaintPipeline",
        "scheduler": scheduler("EulerDiscreteScheduler", XL_SCHEDULER),
        "tokenizer": (bpe.END, "decoder"),
        "tokenizer_2": (bpe.BANG, "decoder"),
        "text_encoder": clip(16, 2),
        "text_encoder_2": clip(16, 2, "gelu", 12),
        "unet": xl_unet([4, 8, 8], 1, [1, 1, 2], [1, 2, 4], 32, 12, in_channels=9),
        "vae": vae(**XL_VAE),
    },
    "sdxl-refiner": {
        "pipeline": "StableDiffusionXLImg2ImgPipeline",
        "scheduler": scheduler("EulerDiscreteScheduler", XL_SCHEDULER),
        "tokenizer_2": (bpe.BANG, "decoder"),
        "text_encoder_2": clip(16, 2, "gelu", 12),
        "unet": xl_unet([4, 8, 8, 8], 1, 2, [1, 2, 4, 4], 16, 12, ids=5, down=(DOWN, CROSS_DOWN, CROSS_DOWN, DOWN)),
        "vae": vae(**XL_VAE),
    },
    "sdxl-turbo": {
        "pipeline": "StableDiffusionXLPipeline",
        "scheduler": scheduler("EulerAncestralDiscreteScheduler", XL_SCHEDULER, timestep_spacing="trailing"),
        "tokenizer": (bpe.END, "decoder"),
        "tokenizer_2": (bpe.BANG, "decoder"),
        "text_encoder": clip(16, 2),
        "text_encoder_2": clip(16, 2, "gelu", 12),
        "unet": xl_unet([4, 8, 8], 1, [1, 1, 2], [1, 2, 4], 32, 12),
        "vae": vae(**XL_VAE),
    },
}


def write():
    """Writes every family's folder and its stage fixtures."""
    for name, family in FAMILIES.items():
        folder = fresh(ROOT / "models" / name)
        save_json(folder / "model_index.json", model_index(name, family))
        save_json(folder / "scheduler" / "scheduler_config.json", family["scheduler"])
        for part in ("tokenizer", "tokenizer_2"):
            if part in family:
                bpe.write_folder(folder / part, *family[part])
        for part in ("text_encoder", "text_encoder_2"):
            if part in family:
                write_text_encoder(folder, part, family[part])
        write_unet(folder, family["unet"])
        write_vae(folder, family["vae"])


def write_text_encoder(folder, part, config):
    """A text encoder and `golden/text.safetensors` or `golden/text_2.safetensors`."""
    model = build_clip(f"{folder.name}/{part}", config)
    tensors = published_clip_keys(model, with_position_ids=folder.name == "sd15")
    write_component(folder / part, "model.safetensors", config, tensors)
    stages.write_text(folder, part, model)


def write_unet(folder, config):
    """A UNet and `golden/unet.safetensors`."""
    name = f"{folder.name}/unet"
    time_ids = stages.AESTHETIC_IDS if folder.name == "sdxl-refiner" else stages.TIME_IDS
    model = build_unet(name, config, time_ids)
    write_component(folder / "unet", "diffusion_pytorch_model.safetensors", config, model.state_dict())
    # Latents' height and width, one timestep a sample, tokens.
    shapes = {"batch": ((16, 8), [901, 17], 7), "odd": ((9, 13), [642.375], 5)}
    if folder.name == "sd15":
        shapes |= {"batch": ((16, 8), [901, 17], 77), "wide": ((12, 20), [0.0], 11)}
    stages.write_unet(folder / "golden" / "unet.safetensors", model, name, shapes, time_ids)


def write_vae(folder, config):
    """An autoencoder and `golden/vae.safetensors`."""
    name = f"{folder.name}/vae"
    model = build_vae(name, config)
    write_component(folder / "vae", "diffusion_pytorch_model.safetensors", config, model.state_dict())
    # Batch, the picture's height and width, those of the latents.
    shapes = {"batch": (2, (16, 16), (2, 2)), "wide": (1, (24, 40), (3, 5))}
    if folder.name == "sd15":
        shapes["square"] = (1, (48, 48), (6, 6))
    stages.write_vae(folder / "golden" / "vae.safetensors", model, name, shapes)


def model_index(name, family):
    """`model_index.json`: the class of each component; `[null, null]` for one the family does without."""
    index = {"_class_name": family["pipeline"], "_diffusers_version": "0.19.0"}
    xl = "text_encoder_2" in family
    classes = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        if part in family:
            index[part] = ["transformers", classes.get(part) or family[part]["architectures"][0]]
        elif xl:
            index[part] = [None, None]
    for part in ("scheduler", "unet", "vae"):
        index[part] = ["diffusers", family[part]["_class_name"]]
    if xl:
        index["force_zeros_for_empty_prompt"] = name != "sdxl-refiner"
        index |= {"requires_aesthetics_score": True} if name == "sdxl-refiner" else {}
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    return index


def write_component(folder, file_name, config, tensors):
    """A component's `config.json` and weights."""
    save_json(folder / "config.json", config)
    save_tensors(folder / file_name, tensors, "gain.initialise")


def build_clip(name, config):
    """A text encoder with gain-initialised weights, checked."""
    model_class = CLIPTextModelWithProjection if "WithProjection" in config["architectures"][0] else CLIPTextModel
    model = gain.initialise(model_class(CLIPTextConfig(**config)), name)
    gain.check(model, stages.text_forward, name)
    return model


def published_clip_keys(model, with_position_ids=False):
    """The tensors under the `text_model.` prefix of the published files; the oldest also hold the position indices."""
    tensors = model.state_dict()
    own = ("text_model.", "text_projection.")
    tensors = {key if key.startswith(own) else f"text_model.{key}": value for key, value in tensors.items()}
    if with_position_ids:
        tensors["text_model.embeddings.position_ids"] = model.embeddings.position_ids
    return tensors


def build_unet(name, config, time_ids=stages.TIME_IDS):
    """A UNet with gain-initialised weights, checked. Its output is small beside the noise: the loop stays stable."""
    model = gain.initialise(UNet2DConditionModel.from_config(config), name)
    inputs = stages.unet_inputs(model.config, name, (9, 13), [901, 17], 5, time_ids)

    def forward(model):
        return [stages.run_unet(model, inputs)]

    gain.scale_output(model.conv_out, forward(model)[0], 0.3)
    gain.check(model, forward, name)
    return model


def build_vae(name, config):
    """An autoencoder with gain-initialised weights whose pictures mostly stay within -1..1, checked."""
    model = gain.initialise(AutoencoderKL.from_config(config), name)
    gain.scale_output(model.decoder.conv_out, model.decode(randn("latents", 1, 4, 8, 8)).sample, 0.4)
    gain.check(model, stages.vae_forward, name)
    return model
