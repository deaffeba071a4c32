"""`tiny_vaes/`: decoders of `AutoencoderTiny`, in the diffusers layout and under the names of the original single file."""

from diffusers import AutoencoderTiny

import gain
import models
import stages
from common import ROOT, fresh, randn


def config(channels, blocks, **changes):
    """A `config.json` whose encoder, which nobody reads, is as small as can be."""
    return {
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": "0.19.0",
        "act_fn": "relu",
        "decoder_block_out_channels": [channels] * len(blocks),
        "encoder_block_out_channels": [channels],
        "in_channels": 3,
        "latent_channels": 4,
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "num_decoder_blocks": blocks,
        "num_encoder_blocks": [0],
        "out_channels": 3,
        "upsampling_scaling_factor": 2,
    } | changes


TINY_VAES = {
    "four-stages": config(4, [2, 1, 0, 1]),
    # The names of the bare `nn.Sequential` that TAESD was published as.
    "original-names": config(4, [1, 1, 1, 1]),
    "other-numbers": config(6, [1, 2], latent_channels=5, upsampling_scaling_factor=3, scaling_factor=0.5),
    "one-stage": config(4, [1]),
}


def write():
    """Writes a folder for each: config, weights, and pictures of two batches of latents."""
    fresh(ROOT / "tiny_vaes")
    for name, config in TINY_VAES.items():
        write_tiny_vae(name, config)


def write_tiny_vae(name, config):
    """`tiny_vaes/<name>`. The latents are large enough for the decoder's own clamp, and scaled as the UNet sees them."""
    label = f"tiny_vaes/{name}"
    model = gain.initialise(AutoencoderTiny.from_config(config), label)
    channels, scale = config["latent_channels"], model.config.scaling_factor
    shapes = {"batch": (2, channels, 3, 3), "wide": (1, channels, 2, 5)}
    latents = {case: 2 * randn(f"{label}/{case}", *shape) for case, shape in shapes.items()}

    def forward(decoder):
        dtype = next(decoder.parameters()).dtype
        return [decoder(batch.to(dtype) / scale) for batch in latents.values()]

    gain.check(model.decoder, forward, label)
    tensors = model.state_dict()
    if name == "original-names":
        tensors = {original_name(key): value for key, value in tensors.items() if key.startswith("decoder.")}
    models.write_component(ROOT / label, "diffusion_pytorch_model.safetensors", config, tensors)
    cases = {
        case: {"latents": batch, "decoded": model.decode(batch / scale).sample} for case, batch in latents.items()
    }
    stages.save_cases(ROOT / label / "golden.safetensors", cases)


def original_name(key):
    """`decoder.layers.2.conv.0.weight` was `3.conv.0.weight`: the clamp is the first of the original's layers."""
    _, _, index, rest = key.split(".", 3)
    return f"{int(index) + 1}.{rest}"
