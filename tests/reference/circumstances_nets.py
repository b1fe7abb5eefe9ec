"""tests/golden/circumstances_nets.json: latents of diffusers from model folders whose networks are not as usual.

Every case is tests/golden/tiny-sd1 with keys of configs changed, and tensors added, taken out or stored in another type.
An added tensor is full of ones."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from common import GOLDEN, f32, versions, write_rows

TEXT, UNET, VAE = "text_encoder/config.json", "unet/config.json", "vae/config.json"
UNET_FILE, TEXT_FILE = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
IP_ADAPTER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.weight"
STEPS, SEED, PROMPT, VALUES = 3, 5, "a red fox", 32
CASES = [
    {"what": "no middle block, and no tensors of one", "changes": {UNET: {"mid_block_type": None}},
     "without": {UNET_FILE: "mid_block."}},
    {"what": "no middle block, whose tensors are left over", "changes": {UNET: {"mid_block_type": None}}},
    {"what": "no middle block, and a text width of its own where nothing attends",
     "changes": {UNET: {"mid_block_type": None, "cross_attention_dim": [32, 32, 7]}}},
    {"what": "a wide sample size", "changes": {UNET: {"sample_size": [8, 12]}}},
    {"what": "a high sample size", "changes": {UNET: {"sample_size": [14, 6]}}},
    {"what": "a small list in an old config is not repaired",
     "changes": {UNET: {"sample_size": [8, 8], "_diffusers_version": "0.8.0"}}},
    {"what": "text widths as a list", "changes": {UNET: {"cross_attention_dim": [32, 32, 32]}}},
    {"what": "heads as a list", "changes": {UNET: {"attention_head_dim": [2, 4, 8]}}},
    {"what": "heads by default", "changes": {UNET: {"attention_head_dim": "absent"}}},
    {"what": "a tensor of an adapter", "changes": {}, "added": {UNET_FILE: IP_ADAPTER}},
    {"what": "a stray tensor of the text encoder", "changes": {}, "added": {TEXT_FILE: "text_model.stray.weight"}},
    {"what": "fewer layers than the text encoder's file has", "changes": {TEXT: {"num_hidden_layers": 1}}},
    {"what": "unknown keys", "changes": {UNET: {"strange": 1}, VAE: {"strange": [2]}, TEXT: {"strange": "x"}}},
    {"what": "dropout, and scores in f32", "changes": {UNET: {"dropout": 0.3, "upcast_attention": True}}},
    {"what": "projections of the text encoder that nobody reads",
     "changes": {TEXT: {"projection_dim": 7, "attention_dropout": 0.5, "eos_token_id": 2}}},
    {"what": "weights in f64", "changes": {}, "type": {UNET_FILE: "F64", TEXT_FILE: "F64"}},
]


def folder(at, case):
    shutil.copytree(GOLDEN / "tiny-sd1", at)
    for file, keys in case["changes"].items():
        config = json.loads((at / file).read_text()) | keys
        (at / file).write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    for file in {*case.get("without", {}), *case.get("added", {}), *case.get("type", {})}:
        tensors = load_file(at / file)
        if prefix := case.get("without", {}).get(file):
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        if name := case.get("added", {}).get(file):
            tensors[name] = torch.ones(2, 2)
        if file in case.get("type", {}):
            tensors = {name: tensor.double() for name, tensor in tensors.items()}
        save_file(tensors, at / file, {"format": "pt"})


def latents(case):
    with tempfile.TemporaryDirectory() as at:
        folder(Path(at) / "m", case)
        pipe = StableDiffusionPipeline.from_pretrained(Path(at) / "m", dtype=torch.float32, safety_checker=None,
                                                       local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent",
                generator=torch.Generator("cpu").manual_seed(SEED)).images


def main():
    about = {"versions": versions(), "prompt": PROMPT, "seed": SEED, "steps": STEPS, "guidance_scale": 3.0}
    rows = []
    for case in CASES:
        found = latents(case)
        rows.append({**case, "size": list(found.shape[2:]), "latents": f32(found)[:VALUES]})
    write_rows(GOLDEN / "circumstances_nets.json", about, {"cases": rows})


if __name__ == "__main__":
    main()
