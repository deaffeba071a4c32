"""`models/*/golden/`: what goes into and comes out of each network, with the intermediates that locate an error."""

import torch
from transformers import CLIPTokenizer

import bpe
import gain
from common import generator, randn, save_tensors

PROMPTS = ["a photograph of an astronaut riding a horse!", "", "¡gatos! 猫 and dogs " * 12]
TIME_IDS = [64.0, 72.0, 8.0, 0.0, 56.0, 48.0]
AESTHETIC_IDS = [64.0, 72.0, 8.0, 0.0, 6.0]


def save_cases(path, cases):
    """Writes named cases, each a map of tensors, under keys `case.tensor`."""
    tensors = {f"{case}.{key}": value for case, tensors in cases.items() for key, value in tensors.items()}
    save_tensors(path, tensors, "crc32 of names")


# Text encoders


def text_forward(model):
    """Every output of a text encoder for a few random ids: the `forward` of [`gain.check`]."""
    vocabulary, length = model.config.vocab_size, model.config.max_position_embeddings
    ids = torch.randint(0, vocabulary - 2, (2, length), generator=generator(1))
    ids[:, -1] = vocabulary - 1
    out = model(ids, output_hidden_states=True)
    return [*out.hidden_states, out.last_hidden_state, pooled(out)]


def pooled(out):
    """The projected row of a model with a projection, the plain one of a model without."""
    return out.text_embeds if "text_embeds" in out else out.pooler_output


def text_case(model, name, ids):
    """One run of a text encoder; `hs.0` is the embeddings, `hs.i` layer i's output before the final norm."""
    out = model(ids, output_hidden_states=True)
    gain.check_rounding(model, lambda model: [model(ids).last_hidden_state, pooled(model(ids))], name)
    hidden = {f"hs.{i}": state for i, state in enumerate(out.hidden_states)}
    return {"ids": ids, **hidden, "last": out.last_hidden_state, "pooled": pooled(out)}


def write_text(folder, part, model):
    """`text.safetensors` (the first encoder) or `text_2.safetensors`: a full prompt, and a short batch of three."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / part.replace("text_encoder", "tokenizer"))
    prompts = torch.tensor([bpe.encode(tokenizer, prompt) for prompt in PROMPTS])
    short = prompts[:, :9].clone()
    short[0, 5] = short[2, 8] = tokenizer.eos_token_id
    name = f"{folder.name}/{part}"
    cases = {
        "full": text_case(model, f"{name}/full", prompts[:1]),
        "batch": text_case(model, f"{name}/batch", short),
    }
    save_cases(folder / "golden" / f"{part.replace('text_encoder', 'text')}.safetensors", cases)


# UNets


def unet_inputs(config, case, size, timesteps, tokens, time_ids=TIME_IDS):
    """Random inputs of a UNet for latents of `size`, one timestep a sample: those that the config asks for."""
    batch = len(timesteps)
    inputs = {
        "sample": randn(f"{case}/sample", batch, config.in_channels, *size),
        "timestep": torch.tensor(timesteps, dtype=torch.float32),
        "context": randn(f"{case}/context", batch, tokens, context_width(config)),
    }
    if config.addition_embed_type == "text_time":
        pooled_size = config.projection_class_embeddings_input_dim - len(time_ids) * config.addition_time_embed_dim
        inputs["text_embeds"] = randn(f"{case}/text_embeds", batch, pooled_size)
        inputs["time_ids"] = torch.tensor([[value + 16 * i for value in time_ids] for i in range(batch)])
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = randn(f"{case}/timestep_cond", batch, config.time_cond_proj_dim)
    if config.class_embed_type or config.num_class_embeds:
        inputs["class_labels"] = class_labels(config, f"{case}/class_labels", batch)
    return inputs


def context_width(config):
    """Width of the text's hidden states: one number for all blocks, or a list of equal ones."""
    width = config.cross_attention_dim
    return width if isinstance(width, int) else width[0]


def class_labels(config, name, batch):
    """Labels of the kind the class embedding takes: an index, a timestep, an embedding or a vector to project."""
    if config.class_embed_type is None:
        return torch.arange(batch) % config.num_class_embeds
    if config.class_embed_type == "timestep":
        return torch.tensor([250.0, 20.0])[:batch]
    width = 4 * config.block_out_channels[0]
    return randn(name, batch, config.projection_class_embeddings_input_dim or width)


def run_unet(model, inputs):
    """The predicted noise, in the model's dtype."""
    inputs = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    residuals = [inputs[key] for key in inputs if key.startswith("res.down.")]
    added = {key: inputs[key] for key in ("text_embeds", "time_ids") if key in inputs}
    return model(
        inputs["sample"],
        inputs["timestep"].float(),
        inputs["context"],
        class_labels=inputs.get("class_labels"),
        timestep_cond=inputs.get("timestep_cond"),
        added_cond_kwargs=added or None,
        down_block_additional_residuals=residuals or None,
        mid_block_additional_residual=inputs.get("res.mid"),
    ).sample


def unet_case(model, name, inputs):
    """One run of a UNet with the sum of its embeddings, and the output of every block on the way."""
    gain.check_rounding(model, lambda model: [run_unet(model, inputs)], name)
    watched = {"conv_in": model.conv_in, "mid": model.mid_block}
    watched |= {f"down.{i}": block for i, block in enumerate(model.down_blocks)}
    watched |= {f"up.{i}": block for i, block in enumerate(model.up_blocks)}
    if model.config.addition_embed_type is not None:
        watched["aug_emb"] = model.add_embedding
    seen, hooks = {}, []

    def keep(key):
        return lambda module, args, out: seen.update({key: out[0] if isinstance(out, tuple) else out})

    def keep_embedding(module, args, kwargs):
        seen["temb"] = kwargs["temb"]

    for key, module in watched.items():
        if module is not None:
            hooks.append(module.register_forward_hook(keep(key)))
    hooks.append(model.down_blocks[0].register_forward_pre_hook(keep_embedding, with_kwargs=True))
    out = run_unet(model, inputs)
    for hook in hooks:
        hook.remove()
    return {**inputs, **seen, "out": out}


def write_unet(path, model, name, shapes, time_ids):
    """`unet.safetensors`; `shapes` maps a case to the latents' size, the timesteps and the number of tokens."""
    cases = {}
    for case, shape in shapes.items():
        inputs = unet_inputs(model.config, f"{name}/{case}", *shape, time_ids)
        cases[case] = unet_case(model, f"{name}/{case}", inputs)
    save_cases(path, cases)


# Autoencoders


def vae_forward(model):
    """What an autoencoder makes of a random picture and of random latents: the `forward` of [`gain.check`]."""
    return vae_outputs(
        model, randn("vae/image", 1, 3, 40, 56), randn("vae/latents", 1, model.config.latent_channels, 8, 8)
    )


def vae_outputs(model, image, latents):
    """The moments of a picture and the picture of (scaled) latents, in the model's dtype."""
    moments = model.encode(image.to(model.dtype)).latent_dist.parameters
    return [moments, model.decode(unscaled(model, latents.to(model.dtype))).sample]


def vae_case(model, name, seed, batch, image_size, latent_size):
    """Encodes a picture, decodes unrelated latents. `latents`, `sampled`, `mode` are scaled; the moments are raw."""
    image = randn(f"{seed}/image", batch, 3, *image_size).clamp(-1, 1)
    latents = randn(f"{seed}/latents", batch, model.config.latent_channels, *latent_size)
    gain.check_rounding(model, lambda model: vae_outputs(model, image, latents), name)
    posterior = model.encode(image).latent_dist
    mean, logvar = posterior.parameters.chunk(2, dim=1)
    noise = randn(f"{seed}/noise", *mean.shape)
    return {
        "image": image,
        "mean": mean,
        "logvar": logvar,
        "noise": noise,
        "sampled": scaled(model, posterior.mean + posterior.std * noise),
        "mode": scaled(model, posterior.mode()),
        "latents": latents,
        "decoded": model.decode(unscaled(model, latents)).sample,
    }


def statistics(model):
    """`(mean, std)` of the latents, where the config gives them."""
    config = model.config
    if config.latents_mean is None:
        return None
    return (torch.tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))


def scaled(model, latents):
    """The diffusion model's view of an encoder's output, as the pipelines compute it."""
    if model.config.latents_mean is None:
        return latents * model.config.scaling_factor
    mean, std = statistics(model)
    return (latents - mean) * model.config.scaling_factor / std


def unscaled(model, latents):
    """The decoder's input for a diffusion model's latents, as the pipelines compute it."""
    if model.config.latents_mean is None:
        return latents / model.config.scaling_factor
    mean, std = statistics(model)
    return latents * std / model.config.scaling_factor + mean


def write_vae(path, model, name, shapes):
    """`vae.safetensors`; `shapes` maps a case to its batch, the picture's and the latents' height and width."""
    save_cases(path, {case: vae_case(model, f"{name}/{case}", case, *shape) for case, shape in shapes.items()})
