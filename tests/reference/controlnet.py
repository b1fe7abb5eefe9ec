"""controlnet.json and controlnet.safetensors: small ControlNets for tiny-sd1 and tiny-sdxl, whose weights come from
`formula.py`, single calls of them and of the UNets, and what diffusers draws with them.
"""

import json

import numpy
import torch
from diffusers import (ControlNetModel, MultiControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline,
                       StableDiffusionXLControlNetPipeline)
from PIL import Image
from transformers import CLIPTokenizer

import formula
import tiny_sdxl
from common import GOLDEN, versions, write_tensors

PROMPT, NEGATIVE = "a photo of the red fox, in the rain!", "blurry"
STEPS, SEED = 6, 7
HEIGHT, WIDTH = 96, 64

# As the configs of diffusers' ControlNets: no sample_size, and the channel order of the first is the default.
ENCODER = dict(conditioning_embedding_out_channels=(8, 16, 16, 24))
SD = dict(ENCODER, block_out_channels=(16, 16, 24), cross_attention_dim=32, attention_head_dim=2, norm_num_groups=8,
          down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"))
XL = {key: tiny_sdxl.UNET[key] for key in (
    "block_out_channels", "layers_per_block", "norm_num_groups", "cross_attention_dim", "attention_head_dim",
    "transformer_layers_per_block", "down_block_types", "use_linear_projection", "addition_embed_type",
    "addition_time_embed_dim", "projection_class_embeddings_input_dim")} | ENCODER
CONFIGS = {
    "sd": SD,
    "sd-bgr": dict(SD, controlnet_conditioning_channel_order="bgr"),
    "xl": XL,
    # As the published ones of middle size: transformers without layers, but for the middle.
    "xl-mid": dict(XL, transformer_layers_per_block=(0, 0, 1)),
    "xl-small": dict(XL, transformer_layers_per_block=(0, 0, 0), down_block_types=("DownBlock2D",) * 3),
}


def picture(number, height, width):
    """A control image, from integers only."""
    y, x, c = numpy.meshgrid(numpy.arange(height), numpy.arange(width), numpy.arange(3), indexing="ij")
    return ((y * (3 + number) + x * 5 + c * (40 + 30 * number) + (x * y) // 7) % 256).astype(numpy.uint8)


def calls(name, net, unet, out):
    draw = torch.Generator("cpu").manual_seed(1)
    randn = lambda *shape: torch.randn(shape, generator=draw)
    width = net.config.cross_attention_dim
    x, context, pooled = randn(2, 4, 12, 9), randn(2, 77, width), randn(2, 40)
    hint = torch.from_numpy(picture(0, 96, 72)).permute(2, 0, 1)[None].float() / 255
    ids = torch.tensor([[96.0, 72.0, 0.0, 0.0, 96.0, 72.0]] * 2)
    added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}} if name.startswith("xl") else {}
    t = torch.tensor(37.25)
    down, mid = net(x, t, context, torch.cat([hint] * 2), return_dict=False, **added)
    out |= {f"{name}.latents": x, f"{name}.context": context}
    if added:
        out[f"{name}.pooled"] = pooled
    # Whole tensors would be large: the mean of each channel, for each row.
    means = [tensor.mean((2, 3)) for tensor in (*down, mid)]
    out[f"{name}.means"] = torch.cat(means, dim=1)
    out[f"{name}.first"], out[f"{name}.mid"] = down[0], mid
    controlled = unet(x, t, context, down_block_additional_residuals=[r * 0.7 for r in down],
                      mid_block_additional_residual=mid * 0.7, **added).sample
    out[f"{name}.unet"] = controlled


def pictures(family, pipe, nets, out, rows):
    for name, row in rows.items():
        chosen = [nets[i] for i in row["nets"]]
        images = [Image.fromarray(picture(i, *row["sizes"][i])) for i in range(len(chosen))]
        one = lambda values: values[0] if len(values) == 1 else values
        pipe.controlnet = chosen[0] if len(chosen) == 1 else MultiControlNetModel(chosen)
        more = dict(controlnet_conditioning_scale=one(row["scale"]), control_guidance_start=one(row["start"]),
                    control_guidance_end=one(row["end"]), guidance_scale=row.get("guidance_scale", 5.0))
        run = lambda kind: pipe(PROMPT, image=one(images), negative_prompt=NEGATIVE, num_inference_steps=STEPS,
                                height=HEIGHT, width=WIDTH, output_type=kind,
                                generator=torch.Generator("cpu").manual_seed(SEED), **more).images
        out[f"{family}.{name}.latents"] = run("latent")
        if name == "one":
            out[f"{family}.{name}.image"] = torch.tensor((run("np")[0] * 255).round().astype("uint8"))


@torch.inference_mode()
def main():
    nets = {name: formula.fill(ControlNetModel(**config), name) for name, config in CONFIGS.items()}
    sd = StableDiffusionPipeline.from_pretrained(GOLDEN / "tiny-sd1", safety_checker=None)
    made, folder = tiny_sdxl.networks(), GOLDEN / tiny_sdxl.NAME
    tokenizers = {name: CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")}
    scheduler = tiny_sdxl.EulerDiscreteScheduler.from_pretrained(folder / "scheduler")

    out = {}
    for name, net in nets.items():
        calls(name, net, sd.unet if name.startswith("sd") else made["unet"], out)
    same, other = [[HEIGHT, WIDTH]], [[70, 51]]
    rows = {
        "one": {"nets": [0], "sizes": same, "scale": [1.0], "start": [0.0], "end": [1.0]},
        "resized": {"nets": [0], "sizes": other, "scale": [0.6], "start": [0.0], "end": [1.0]},
        "part": {"nets": [0], "sizes": same, "scale": [1.0], "start": [0.2], "end": [0.7]},
        "two": {"nets": [0, 1], "sizes": same + other, "scale": [1.0, 0.5], "start": [0.0, 0.3], "end": [0.6, 1.0]},
        "unguided": {"nets": [1], "sizes": same, "scale": [1.0], "start": [0.0], "end": [1.0], "guidance_scale": 1.0},
    }
    pipe = StableDiffusionControlNetPipeline(**{k: v for k, v in sd.components.items() if k != "image_encoder"},
                                             controlnet=nets["sd"], requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pictures("sd", pipe, [nets["sd"], nets["sd-bgr"]], out, rows)
    pipe = StableDiffusionXLControlNetPipeline(**made, **tokenizers, scheduler=scheduler, controlnet=nets["xl"],
                                               add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    pictures("xl", pipe, [nets["xl"], nets["xl-mid"]], out, rows)
    for name, tensor in out.items():
        assert tensor.isfinite().all(), name
    print({name: round(tensor.float().std().item(), 3) for name, tensor in out.items() if "context" not in name})

    # What the calls read is drawn again in the same order for each network, so one copy of each form is enough.
    kept = {k: v for k, v in out.items() if not k.split(".")[1] in ("latents", "context", "pooled")
            or k.split(".")[0] in ("sd", "xl")}
    about = {"versions": versions(), "prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "steps": STEPS,
             "height": HEIGHT, "width": WIDTH, "rows": rows, "nets": {"sd": ["sd", "sd-bgr"], "xl": ["xl", "xl-mid"]}}
    write_tensors(GOLDEN / "controlnet.safetensors", kept, about)
    described = {name: {"config": dict(json.loads(net.to_json_string())), **formula.describe(net)}
                 for name, net in nets.items()}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(about)}" for name, about in described.items())
    (GOLDEN / "controlnet.json").write_text("{\n" + rows + "\n}\n")


if __name__ == "__main__":
    main()
