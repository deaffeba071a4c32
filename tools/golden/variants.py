"""`unets/`, `vaes/`, `clips/`: shapes, options and file layouts beyond the families'."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

import gain
import models
import stages
from common import ROOT, fresh, generator, randn, relative_error
from models import CROSS_DOWN, CROSS_UP, DOWN, UP

TINY = models.unet([4, 4], [CROSS_DOWN, DOWN], [UP, CROSS_UP], 1, 2, 8)
THREE = models.unet([4, 8, 8], [CROSS_DOWN, CROSS_DOWN, DOWN], [UP, CROSS_UP, CROSS_UP], 1, [1, 2, 4], 8)

UNETS = {
    "class-table": TINY | {"num_class_embeds": 5},
    "class-timestep": TINY | {"class_embed_type": "timestep"},
    "class-identity": TINY | {"class_embed_type": "identity"},
    "class-projection": TINY | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10},
    "class-simple-projection": TINY
    | {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 10},
    # ControlNet's additions to the skips and the middle; see `residuals`.
    "residuals": THREE,
    "reverse-depth": THREE
    | {"transformer_layers_per_block": [1, 2, 1], "reverse_transformer_layers_per_block": [1, 1, 2]},
    "layers-per-block": THREE | {"layers_per_block": [1, 2, 1], "cross_attention_dim": [8, 8, 8]},
    # Attention at the lowest resolution only, the up path's on another level than the down path's.
    "attention-levels": THREE | {"down_block_types": [DOWN, DOWN, CROSS_DOWN], "up_block_types": [UP, CROSS_UP, UP]},
    "no-mid": TINY | {"mid_block_type": None},
    "plain-mid": TINY | {"mid_block_type": "UNetMidBlock2D"},
    "one-block": models.unet([4], [CROSS_DOWN], [CROSS_UP], 1, 2, 8),
    # Every number that has a default set to something else.
    "other-numbers": TINY
    | {
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 0.01,
        "in_channels": 5,
        "out_channels": 3,
        "norm_num_groups": 1,
        "time_embedding_dim": 20,
    },
    # Activations so small that each epsilon of the norms counts; see `quiet`.
    "epsilons": TINY,
}


def vae(*channels, **changes):
    """An autoencoder of as many blocks as `channels`."""
    down, up = ["DownEncoderBlock2D"] * len(channels), ["UpDecoderBlock2D"] * len(channels)
    return models.vae(channels, 1, down_block_types=down, up_block_types=up, **changes)


VAES = {
    # The names before diffusers 0.12: query, key, value, proj_attn.
    "old-names": vae(4, 4),
    # Attention weights as 1x1 convolutions, as in the original checkpoints.
    "convolution-weights": vae(4, 4),
    "no-quant-conv": vae(4, 4, latent_channels=6, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
    "no-mid-attention": vae(4, 4, mid_block_add_attention=False),
    "statistics": vae(4, 4, latents_mean=[0.5, -1.0, 0.0, 2.0], latents_std=[1.0, 2.0, 4.0, 0.5]),
    # Variances beyond the clamp on both sides; see `spread`.
    "clamped": vae(4, 4),
    "three-blocks": vae(4, 4, 6),
    "epsilons": vae(4, 4),
}


def clip(**changes):
    """A text encoder with a vocabulary of its own; where `eos_token_id` is not 2, the end is not the highest id."""
    return models.clip(16, 2, **{"vocab_size": 100} | changes)


CLIPS = {
    "flat-names": clip(),
    "prefixed": clip(),
    "eos-first": clip(act="gelu", eos_token_id=90),
    "eos-highest": clip(act="gelu"),
    "projection-eos-first": clip(act="gelu", projection=12, eos_token_id=90),
    "projection-eos-highest": clip(projection=12),
    "other-numbers": clip(max_position_embeddings=32, num_attention_heads=1, layer_norm_eps=0.01, num_hidden_layers=1),
}


def write():
    """Writes the three folders."""
    fresh(ROOT / "unets")
    for name, config in UNETS.items():
        write_unet(name, config)
    fresh(ROOT / "vaes")
    for name, config in VAES.items():
        write_vae(name, config)
    fresh(ROOT / "clips")
    for name, config in CLIPS.items():
        write_clip(name, config)


def write_unet(name, config):
    """`unets/<name>`: config, weights and two cases, the second odd in size."""
    label = f"unets/{name}"
    model = gain.initialise(UNet2DConditionModel.from_config(config), label)
    if name == "epsilons":
        quiet(model)
    shapes = {"batch": ((8, 8), [901, 17], 5), "odd": ((9, 7), [642.375], 3)}
    cases = {}
    for case, shape in shapes.items():
        inputs = stages.unet_inputs(model.config, f"{label}/{case}", *shape)
        cases[case] = inputs | (residuals(model, inputs) if name == "residuals" else {})

    def forward(model):
        return [stages.run_unet(model, cases["odd"])]

    gain.scale_output(model.conv_out, forward(model)[0], 0.3)
    gain.check(model, forward, label)
    if name == "epsilons":
        check_epsilons(model, forward)
    models.write_component(ROOT / label, "diffusion_pytorch_model.safetensors", config, model.state_dict())
    golden = {case: stages.unet_case(model, f"{label}/{case}", inputs) for case, inputs in cases.items()}
    stages.save_cases(ROOT / label / "golden.safetensors", golden)


def residuals(model, inputs):
    """One addition a skip connection, `res.down.{i}`, and one behind the middle, `res.mid`."""
    shapes, hooks = [], []

    def keep(module, args, kwargs):
        shapes.extend(skip.shape for skip in reversed(kwargs["res_hidden_states_tuple"]))

    for block in model.up_blocks:
        hooks.append(block.register_forward_pre_hook(keep, with_kwargs=True))
    hooks.append(model.mid_block.register_forward_hook(lambda module, args, out: shapes.append(out.shape)))
    stages.run_unet(model, inputs)
    for hook in hooks:
        hook.remove()
    middle, *skips = shapes
    down = {f"res.down.{i}": randn(f"residual {i}", *shape) for i, shape in enumerate(reversed(skips))}
    return down | {"res.mid": randn("residual mid", *middle)}


def quiet(model):
    """Scales what is added to the residual streams so that they stay near 0.006; what passes them on keeps its gain."""
    added = ("conv_in", "conv1", "time_emb_proj", "conv2", "proj_in", "to_out.0", "ff.net.2")
    passed = ("conv_shortcut", "samplers.0.conv", "proj_out")
    for key, module in model.named_modules():
        if key.endswith(added):
            module.weight *= 0.006
        if key.endswith(added + passed):
            module.bias *= 0.006


def check_epsilons(model, forward):
    """Asserts that a tenfold epsilon of any group or layer norm moves `forward(model)`."""
    reference = forward(model)
    for key, module in model.named_modules():
        if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            module.eps *= 10
            moved = max(relative_error(a, b) for a, b in zip(forward(model), reference))
            module.eps /= 10
            assert moved > 3e-5, f"{key} moves the output by {moved:.1e} only"


def write_vae(name, config):
    """`vaes/<name>`: config, weights in the layout the name says, and two cases."""
    label = f"vaes/{name}"
    model = gain.initialise(AutoencoderKL.from_config(config), label)
    if name == "clamped":
        spread(model)
    if name == "epsilons":
        quiet(model)
    gain.scale_output(model.decoder.conv_out, stages.vae_forward(model)[1], 0.4)
    gain.check(model, stages.vae_forward, label)
    if name == "epsilons":
        check_epsilons(model, stages.vae_forward)
    tensors = model.state_dict()
    if name in ("old-names", "convolution-weights"):
        tensors = {old_name(key): value for key, value in tensors.items()}
    if name == "convolution-weights":
        attention = ("query.weight", "key.weight", "value.weight", "proj_attn.weight")
        for key in tensors:
            if key.endswith(attention):
                tensors[key] = tensors[key][:, :, None, None]
    models.write_component(ROOT / label, "diffusion_pytorch_model.safetensors", config, tensors)
    stages.write_vae(
        ROOT / label / "golden.safetensors", model, label, {"batch": (2, (8, 8), (3, 3)), "wide": (1, (8, 12), (2, 3))}
    )


def old_name(key):
    """A tensor's name before diffusers 0.12."""
    if ".attentions." not in key:
        return key
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        key = key.replace(new, old)
    return key


def spread(model):
    """Scales the log variances so that many lie outside -30..20."""
    model.quant_conv.weight[4:] *= 40
    model.quant_conv.bias[4:] *= 40


def write_clip(name, config):
    """`clips/<name>`: config, weights, and texts with several ends and with ids above the end."""
    label = f"clips/{name}"
    model = models.build_clip(label, config)
    tensors = model.state_dict() if name == "flat-names" else models.published_clip_keys(model)
    models.write_component(ROOT / label, "model.safetensors", config, tensors)
    ids = torch.randint(0, 90, (3, 12), generator=generator(label))
    ids[:, 6:10] = torch.tensor([[90, 95, 90, 0], [1, 90, 95, 90], [90, 90, 2, 99]])
    cases = {"ends": stages.text_case(model, f"{label}/ends", ids)}
    if config["eos_token_id"] != 2:
        # Without an end the reference takes the first position.
        cases["endless"] = stages.text_case(model, f"{label}/endless", ids[:1, :6])
    stages.save_cases(ROOT / label / "golden.safetensors", cases)
