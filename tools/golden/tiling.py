"""`tiling/`: pictures encoded and decoded in tiles, as after `AutoencoderKL.enable_vae_tiling`."""

from diffusers import AutoencoderKL

import gain
import models
import stages
from common import ROOT, fresh, randn
from variants import vae

# Each autoencoder with the sizes of its cases, height and width in latents.
VAES = {
    # Tiles of 4 latents and 32 pixels, which start every 3 latents: of the last one, 1 to 4 are left.
    "four-blocks": (
        models.vae(sample_size=32),
        {"one-tile": (4, 4), "two-by-two": (6, 5), "wide": (4, 9), "tall": (11, 3), "last-of-one": (7, 10)},
    ),
    # Tiles of 8 latents and 16 pixels, which share 2 latents: the last one may be narrower than that.
    "two-blocks": (
        vae(4, 4, sample_size=16, latents_mean=[0.5, -1.0, 0.0, 2.0], latents_std=[1.0, 2.0, 4.0, 0.5]),
        {"one-tile": (8, 7), "two-by-two": (12, 9), "wide": (7, 21), "tall": (17, 4), "last-of-one": (13, 19)},
    ),
}


def write():
    """Writes the folder: for each autoencoder its config and weights, and `golden.safetensors`."""
    fresh(ROOT / "tiling")
    for name, (config, sizes) in VAES.items():
        label = f"tiling/{name}"
        model = gain.initialise(AutoencoderKL.from_config(config), label)
        gain.scale_output(model.decoder.conv_out, stages.vae_forward(model)[1], 0.4)
        gain.check(model, stages.vae_forward, label)
        models.write_component(ROOT / label, "diffusion_pytorch_model.safetensors", config, model.state_dict())
        model.enable_tiling()
        cases = {case: tiled(model, f"{label}/{case}", size) for case, size in sizes.items()}
        stages.save_cases(ROOT / label / "golden.safetensors", cases)


def tiled(model, name, size):
    """One case: a picture and its moments, scaled latents and their picture.."""
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    image = randn(f"{name}/image", 1, 3, *(side * factor for side in size)).clamp(-1, 1)
    latents = randn(f"{name}/latents", 1, model.config.latent_channels, *size)
    gain.check_rounding(model, lambda model: stages.vae_outputs(model, image, latents), name)
    mean, logvar = model.encode(image).latent_dist.parameters.chunk(2, dim=1)
    return {
        "image": image,
        "mean": mean,
        "logvar": logvar,
        "latents": latents,
        "decoded": model.decode(stages.unscaled(model, latents)).sample,
    }
