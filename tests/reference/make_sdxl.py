"""An SDXL of full size with random weights, for plans, speed and memory: `make_sdxl.py FOLDER [--configs]`. Not committed.

Weights are f16, 7 GB; with --configs only configs and tokenizers are written. The values of the configs are those of
the published base model.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy

from clip_vocab import write_tokenizer

UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 128, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048, "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "norm_num_groups": 32,
}
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "latent_channels": 4, "norm_num_groups": 32, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
        "layer_norm_eps": 1e-05, "model_type": "clip_text_model"}
FIRST = TEXT | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                "hidden_act": "quick_gelu", "projection_dim": 768}
SECOND = TEXT | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
                 "hidden_act": "gelu", "projection_dim": 1280}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
    "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "timestep_spacing": "leading", "use_karras_sigmas": False,
}
INDEX = {
    "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FILES = {"text_encoder": "model.safetensors", "text_encoder_2": "model.safetensors",
         "unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors"}


def shapes():
    """The tensors of each component, from the reference's classes, without memory for them."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    with torch.device("meta"):
        made = {"text_encoder": CLIPTextModel(CLIPTextConfig(**FIRST)),
                "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**SECOND)),
                "unet": UNet2DConditionModel.from_config(UNET), "vae": AutoencoderKL.from_config(VAE)}
    return {name: {k: tuple(v.shape) for k, v in module.named_parameters()} for name, module in made.items()}


def write_weights(path, tensors, seed):
    """Random tensors one by one, so that no more than one is in memory."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw = numpy.random.default_rng(seed)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors.items():
            x = draw.standard_normal(shape, dtype=numpy.float32)
            if len(shape) == 1:
                x = 1 + 0.02 * x if name.endswith("weight") else 0.02 * x
            else:
                x *= 0.6 / numpy.sqrt(numpy.prod(shape[1:]))
            file.write(x.astype(numpy.float16).tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--configs", action="store_true", help="no weights")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    configs = {"model_index.json": INDEX, "scheduler/scheduler_config.json": SCHEDULER, "unet/config.json": UNET,
               "vae/config.json": VAE, "text_encoder/config.json": FIRST, "text_encoder_2/config.json": SECOND}
    for name, config in configs.items():
        path = args.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(args.folder / "tokenizer")
    write_tokenizer(args.folder / "tokenizer_2", pad="!")
    if not args.configs:
        for seed, (name, tensors) in enumerate(shapes().items()):
            write_weights(args.folder / name / FILES[name], tensors, seed)


if __name__ == "__main__":
    main()
