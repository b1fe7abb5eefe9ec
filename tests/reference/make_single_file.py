"""Writes a diffusers folder of Stable Diffusion 1, 2 or XL as one file with the names of the original code:
python make_single_file.py --folder DIR --out FILE.safetensors

For example the folder that make_sd15.py writes. The blocks of the UNet and the VAE are numbered in the order in which
the original code builds them. Tensors keep their types; all of them are in memory at once."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
OLD_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def unet_modules(config):
    """Pairs of the beginnings of diffusers' and LDM's names, in LDM's order."""
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    yield from [("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
                ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
                ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2")]
    resnet = lambda name, ldm: [(f"{name}.{a}", f"{ldm}.{b}") for a, b in RESNET.items()]
    block = 1
    for level in range(levels):
        for layer in range(layers):
            yield from resnet(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{block}.0")
            yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{block}.1"
            block += 1
        if level + 1 < levels:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{block}.0.op"
            block += 1
    yield from resnet("mid_block.resnets.0", "middle_block.0")
    yield "mid_block.attentions.0", "middle_block.1"
    yield from resnet("mid_block.resnets.1", "middle_block.2")
    block = 0
    for level, kind in enumerate(config["up_block_types"]):
        for layer in range(layers + 1):
            yield from resnet(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{block}.0")
            yield f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{block}.1"
            if layer == layers and level + 1 < levels:
                behind = 2 if kind == "CrossAttnUpBlock2D" else 1
                yield f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{block}.{behind}.conv"
            block += 1


def vae_modules(config):
    levels = len(config["block_out_channels"])
    yield from [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    for half, word, sample in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        yield from [(f"{half}.conv_in", f"{half}.conv_in"), (f"{half}.conv_out", f"{half}.conv_out"),
                    (f"{half}.conv_norm_out", f"{half}.norm_out")]
        for i in range(2):
            yield f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}"
        attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
        for name, ldm in attention.items():
            yield f"{half}.mid_block.attentions.0.{name}", f"{half}.mid.attn_1.{ldm}"
        for level in range(levels):
            at = level if half == "encoder" else levels - 1 - level
            for layer in range(config["layers_per_block"] + (half == "decoder")):
                path, ldm = f"{half}.{word}_blocks.{level}.resnets.{layer}", f"{half}.{word}.{at}.block.{layer}"
                yield f"{path}.conv_shortcut", f"{ldm}.nin_shortcut"
                yield path, ldm
            yield f"{half}.{word}_blocks.{level}.{sample}rs.0.conv", f"{half}.{word}.{at}.{sample}.conv"


def renamed(tensors, modules, prefix):
    """Every tensor under the name of the first module that it belongs to."""
    modules, result = list(modules), {}
    for name, tensor in tensors.items():
        old, new = next((a, b) for a, b in modules if name.startswith(a + "."))
        result[prefix + new + name[len(old):]] = tensor
    assert len(result) == len(tensors)
    return result


def open_clip(tensors, prefix, blocks):
    """OpenCLIP's names; `blocks` is the number of layers in published files, one more than Stable Diffusion 2 uses."""
    simple = {"embeddings.token_embedding.weight": "token_embedding.weight",
              "embeddings.position_embedding.weight": "positional_embedding",
              "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}
    result = {prefix + new: tensors[old] for old, new in simple.items()}
    width = tensors["final_layer_norm.weight"].shape[0]
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layers."))
    for i in range(blocks):
        old, new = f"encoder.layers.{min(i, layers - 1)}", f"{prefix}transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            for a, b in inner.items():
                result[f"{new}.{b}.{leaf}"] = tensors[f"{old}.{a}.{leaf}"].clone()
            thirds = [tensors[f"{old}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            result[f"{new}.attn.in_proj_{leaf}"] = torch.cat(thirds)
    projection = tensors.get("text_projection.weight", torch.eye(width, dtype=tensors["final_layer_norm.bias"].dtype))
    result[prefix + "text_projection"] = projection.T.contiguous()
    result[prefix + "logit_scale"] = torch.tensor(4.6052)
    return result


def load(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    result = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("text_model.")
        for old, new in OLD_VAE.items():
            if "attentions." in name:
                name = name.replace(f".{old}.", f".{new}.")
        result[name] = tensor
    return result


def main():
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--folder", type=Path, required=True)
    cli.add_argument("--out", type=Path, required=True)
    args = cli.parse_args()
    config = lambda part: json.loads((args.folder / part / "config.json").read_text())
    is_xl = (args.folder / "text_encoder_2").exists()

    tensors = renamed(load(args.folder / "unet"), unet_modules(config("unet")), "model.diffusion_model.")
    vae = renamed(load(args.folder / "vae"), vae_modules(config("vae")), "first_stage_model.")
    is_projection = lambda name: ".mid.attn_1." in name and name.endswith(".weight") and ".norm." not in name
    tensors |= {name: t[:, :, None, None] if is_projection(name) and t.dim() == 2 else t for name, t in vae.items()}
    text = load(args.folder / "text_encoder")
    if config("text_encoder")["hidden_act"] == "gelu":
        tensors |= open_clip(text, "cond_stage_model.model.", config("text_encoder")["num_hidden_layers"] + 1)
    else:
        prefix = "conditioner.embedders.0.transformer." if is_xl else "cond_stage_model.transformer."
        tensors |= {f"{prefix}text_model.{name}": tensor for name, tensor in text.items()}
        tensors[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if is_xl:
        second = load(args.folder / "text_encoder_2")
        tensors |= open_clip(second, "conditioner.embedders.1.model.", config("text_encoder_2")["num_hidden_layers"])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, args.out)
    print(args.out, len(tensors), "tensors")


if __name__ == "__main__":
    main()
