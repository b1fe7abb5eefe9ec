"""tests/golden/lora.safetensors: latents of tiny-sd1 with a LoRA that is merged here by NumPy (W + m · alpha / r · up · down),
with one strength and with another one in the text encoder; and the names and shapes of the LoRA's tensors, whose values come from `formula.py`.
"""

import numpy
import torch

import formula
from common import GOLDEN, versions, write_tensors
from pipelines import HEIGHT, PROMPT, SEED, WIDTH, load

STEPS, RANK, ALPHA, STRENGTH = 4, 4, 2.0, 0.75
# The strength in the text encoder, where it has one of its own.
TEXT_STRENGTH = -0.5
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
# Modules of the UNet: linear layers, 1x1 convolutions and 3x3 convolutions.
UNET = [f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_out.0", f"{BLOCK}.attn2.to_k", f"{BLOCK}.ff.net.0.proj",
        f"{BLOCK}.ff.net.2", "down_blocks.1.attentions.0.proj_in", "mid_block.resnets.0.conv1",
        "up_blocks.1.resnets.0.conv_shortcut", "up_blocks.1.upsamplers.0.conv", "mid_block.resnets.0.time_emb_proj"]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"]


def merge(module, stem, tensors, strength=STRENGTH):
    """Merge one module in place, and note the shapes of the LoRA's tensors."""
    weight = module.weight
    down = [RANK, *weight.shape[1:]]
    up = [weight.shape[0], RANK, *[1] * (weight.dim() - 2)]
    tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    value = lambda name, shape: formula.weight("lora", name, tuple(shape)).double().numpy().reshape(shape[0], -1)
    product = value(f"{stem}.lora_up.weight", up) @ value(f"{stem}.lora_down.weight", down)
    change = strength * ALPHA / RANK * product.reshape(weight.shape)
    weight.copy_(torch.from_numpy((weight.double().numpy() + change).astype(numpy.float32)))


@torch.inference_mode()
def main():
    pipe = load(GOLDEN / "tiny-sd1")
    run = lambda: pipe(PROMPT, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, guidance_scale=7.5,
                       output_type="latent", generator=torch.Generator("cpu").manual_seed(SEED)).images
    out, tensors = {"without": run()}, {}
    for name in UNET:
        merge(pipe.unet.get_submodule(name), "lora_unet_" + name.replace(".", "_"), tensors)
    plain = {name: pipe.text_encoder.get_submodule(name).weight.clone() for name in TEXT}
    for key, strength in (("with", STRENGTH), ("apart", TEXT_STRENGTH)):
        for name in TEXT:
            module = pipe.text_encoder.get_submodule(name)
            module.weight.copy_(plain[name])
            merge(module, "lora_te_text_model_" + name.replace(".", "_"), tensors, strength)
        out[key] = run()
    about = {"versions": versions(), "prompt": PROMPT, "seed": SEED, "steps": STEPS, "height": HEIGHT, "width": WIDTH,
             "guidance_scale": 7.5, "alpha": ALPHA, "strength": STRENGTH,
             "text_strength": TEXT_STRENGTH, "tensors": tensors}
    write_tensors(GOLDEN / "lora.safetensors", out, about)
    print((out["with"] - out["without"]).abs().max() / out["without"].abs().max())


if __name__ == "__main__":
    main()
