"""Writes a Stable Diffusion 1.5 of full size with random weights (f16, 2.1 GB): python make_sd15.py --out DIR

For speed and memory, where the published weights are not at hand. The architecture, configs and file layout are those
of SD 1.5; the weights depend on the seed alone, and outputs stay finite. One component is in memory at a time."""

import argparse
import gc
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from clip_vocab import write_tokenizer
from common import random_weight
from tiny_models import PUBLISHED_UNET_KEYS, model_index, save_scheduler, text_config, text_tensors

UNET = dict(
    sample_size=64, in_channels=4, out_channels=4, cross_attention_dim=768, attention_head_dim=8, layers_per_block=2,
    block_out_channels=(320, 640, 1280, 1280), norm_num_groups=32,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
)
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=512, layers_per_block=2, norm_num_groups=32,
    block_out_channels=(128, 256, 512, 512), scaling_factor=0.18215,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)
CLIP = dict(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12,
    num_attention_heads=12, max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5,
    bos_token_id=0, eos_token_id=2, pad_token_id=1,
)


def random_tensors(model, seed):
    """f16 values for a model that was built on the meta device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    tensors = {name: random_weight(name, shapes[name], generator).half() for name in sorted(shapes)}
    # The UNet's prediction should have about the deviation of noise, and a picture should not be all clipped.
    for name, factor in (("conv_out.weight", 0.9), ("decoder.conv_out.weight", 0.4)):
        if name in tensors:
            tensors[name] *= factor
    return tensors


def write(folder, file, tensors):
    save_file(tensors, folder / file, metadata={"format": "pt"})
    print(folder.name, sum(t.numel() for t in tensors.values()), "parameters")


def main():
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--seed", type=int, default=15)
    args = cli.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                              num_train_timesteps=1000, set_alpha_to_one=False, skip_prk_steps=True)
    # The published file has no timestep_spacing and no prediction_type, but a clip_sample.
    save_scheduler(args.out / "scheduler", scheduler, {"clip_sample": False}, ("timestep_spacing", "prediction_type"))
    write_tokenizer(args.out / "tokenizer")
    model_index(args.out, scheduler)

    with torch.device("meta"):
        text = CLIPTextModel(CLIPTextConfig(**CLIP))
    folder = args.out / "text_encoder"
    text.config.save_pretrained(folder)
    text_config(folder, "float16")
    tensors = random_tensors(text, args.seed)
    write(folder, "model.safetensors", {"text_model." + k.removeprefix("text_model."): t for k, t in tensors.items()})
    del text, tensors

    for part, cls, config in (("unet", UNet2DConditionModel, UNET), ("vae", AutoencoderKL, VAE)):
        gc.collect()
        with torch.device("meta"):
            model = cls(**config)
        folder = args.out / part
        model.save_config(folder)
        path = folder / "config.json"
        keys = PUBLISHED_UNET_KEYS if part == "unet" else ["_class_name", "_diffusers_version", "act_fn", *VAE]
        full = json.loads(path.read_text())
        path.write_text(json.dumps({k: full[k] for k in keys}, indent=2) + "\n")
        write(folder, "diffusion_pytorch_model.safetensors", random_tensors(model, args.seed))
        del model


if __name__ == "__main__":
    main()
