"""Writes what diffusers and transformers make of a configuration; `../diffusers.rs` compares.

    python generate.py

class_defaults.json   the default of every argument of the configuration classes
unets.json            blocks and number of parameters of UNets: every published one, and others, with their
                      configurations, for the rest of the keys
"""

import inspect
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig

HERE = Path(__file__).parent
PUBLISHED = HERE.parent / "published"
SMALL = {
    "block_out_channels": [8, 16, 24, 32],
    "norm_num_groups": 4,
    "attention_head_dim": [1, 2, 3, 4],
    "cross_attention_dim": 12,
}
OTHERS = {
    "layers": {"layers_per_block": [1, 2, 3, 4]},
    "depths": {"transformer_layers_per_block": [1, 2, 3, 4]},
    "reverse-depths": {
        "transformer_layers_per_block": [1, 2, 3, 4],
        "reverse_transformer_layers_per_block": [3, 1, 4, 2],
    },
    "contexts": {"cross_attention_dim": [12, 20, 28, 36]},
    "attention-everywhere": {
        "down_block_types": ["CrossAttnDownBlock2D"] * 4,
        "up_block_types": ["CrossAttnUpBlock2D"] * 4,
        "use_linear_projection": True,
    },
    "asymmetric": {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    },
    "plain-mid": {"mid_block_type": "UNetMidBlock2D"},
    "no-mid": {"mid_block_type": None},
    "one-block": {
        "block_out_channels": [8],
        "attention_head_dim": 2,
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
    },
    "embeddings": {"time_embedding_dim": 20, "time_cond_proj_dim": 6, "in_channels": 9, "out_channels": 5},
    "text-time": {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 60,
    },
    "class-table": {"num_class_embeds": 7},
    "class-timestep": {"class_embed_type": "timestep"},
    "class-identity": {"class_embed_type": "identity"},
    "class-projection": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10},
    "class-simple-projection": {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 10},
}


def defaults(cls):
    """The default of every argument, but those of transformers' base class."""
    parameters = inspect.signature(cls.__init__).parameters
    own = cls.__annotations__ if cls is CLIPTextConfig else parameters
    return {key: p.default for key, p in parameters.items() if key in own and p.default is not inspect.Parameter.empty}


def block(module):
    """Channels and transformers of a block, read from its layers."""
    transformers = getattr(module, "attentions", None) or []
    first = [
        {
            "heads": t.transformer_blocks[0].attn2.heads,
            "depth": len(t.transformer_blocks),
            "context_dim": t.transformer_blocks[0].attn2.to_k.in_features,
        }
        for t in transformers
        if t is not None
    ]
    assert all(t == first[0] for t in first)
    return {
        "resnets": [[r.in_channels, r.out_channels] for r in module.resnets],
        "transformers": len(first),
        "attention": first[0] if first else None,
        "resample": bool(getattr(module, "downsamplers", None) or getattr(module, "upsamplers", None)),
    }


def unet(config):
    known = inspect.signature(UNet2DConditionModel.__init__).parameters
    with torch.device("meta"):
        model = UNet2DConditionModel(**{key: value for key, value in config.items() if key in known})
    return {
        "down": [block(b) for b in model.down_blocks],
        "mid": block(model.mid_block) if model.mid_block is not None else None,
        "up": [block(b) for b in model.up_blocks],
        "time_embed_dim": model.time_embedding.linear_2.out_features,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def main():
    classes = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "tiny_vae": AutoencoderTiny,
        "clip": CLIPTextConfig,
    }
    write("class_defaults.json", {name: defaults(cls) for name, cls in classes.items()})
    unets = {
        path.parent.parent.name: unet(json.loads(path.read_text()))
        for path in sorted(PUBLISHED.glob("*/unet/config.json"))
    }
    unets |= {name: {"config": SMALL | changes} | unet(SMALL | changes) for name, changes in OTHERS.items()}
    write("unets.json", unets)


def write(name, values):
    """JSON with an entry a line."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    (HERE / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
