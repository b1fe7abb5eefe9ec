"""tiny-sdxl/ and tiny-sdxl.safetensors: a small pipeline in the form of SDXL, whose weights come from `formula.py`, and
what diffusers makes of it; and single calls of UNets in the forms of SSD-1B and of latent consistency models.
"""

import json
import shutil

import torch
from diffusers import (AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
                       EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel)
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import formula
from clip_vocab import write_tokenizer
from common import GOLDEN, versions, write_tensors
from tiny_models import MERGES

NAME = "tiny-sdxl"
PROMPT, SECOND = "a photo of the red fox, in the rain!", "oil painting"
NEGATIVE, NEGATIVE_SECOND = "blurry", "a house"
HEIGHT, WIDTH, STEPS, SEED = 96, 64, 6, 7

TEXT = dict(vocab_size=1000, max_position_embeddings=77, bos_token_id=0, eos_token_id=2, pad_token_id=1)
FIRST = CLIPTextConfig(**TEXT, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=3,
                       hidden_act="quick_gelu", projection_dim=32)
# The widths of the second encoder and of its projection differ, so that a transposed projection does not load.
OTHER = CLIPTextConfig(**TEXT, hidden_size=48, intermediate_size=96, num_attention_heads=4, num_hidden_layers=4,
                       hidden_act="gelu", projection_dim=40)
UNET = dict(
    sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32, 32), layers_per_block=2,
    norm_num_groups=8, cross_attention_dim=80, attention_head_dim=(1, 2, 4), transformer_layers_per_block=(1, 2, 3),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=40 + 6 * 8,
)
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=128, scaling_factor=0.13025, layers_per_block=1,
    block_out_channels=(8, 8, 16, 16), norm_num_groups=4, force_upcast=True,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)
# As SSD-1B: fewer transformer layers in single blocks, one residual block in the middle.
PRUNED = dict(UNET, transformer_layers_per_block=((1, 1), (1, 2), (2, 1)), mid_block_type="UNetMidBlock2D",
              reverse_transformer_layers_per_block=((2, 1, 2), (1, 1, 2), (1, 1, 1)))
# As LCM: the guidance scale is an input of the network.
DISTILLED = dict(UNET, time_cond_proj_dim=12)
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", interpolation_type="linear",
                num_train_timesteps=1000, prediction_type="epsilon", steps_offset=1, timestep_spacing="leading",
                use_karras_sigmas=False)
# So that the outputs of the UNet have deviation 1 and pictures stay mostly inside -1..1.
FACTORS = {"unet": {"conv_out.weight": 1.4}, "vae": {"decoder.conv_out.weight": 0.3}}


def networks():
    made = {"text_encoder": CLIPTextModel(FIRST), "text_encoder_2": CLIPTextModelWithProjection(OTHER),
            "unet": UNet2DConditionModel(**UNET), "vae": AutoencoderKL(**VAE)}
    return {name: formula.fill(module, name, FACTORS.get(name)) for name, module in made.items()}


def write_folder(folder, made, tokenizers, scheduler):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, module in made.items():
        module.config.save_pretrained(folder / name) if name.startswith("text") else module.save_config(folder / name)
    for name, pad in tokenizers.items():
        write_tokenizer(folder / name, MERGES, pad=pad)
    # The published file has the keys of other classes, which a scheduler made from this config takes over.
    config = {"_class_name": type(scheduler).__name__, "_diffusers_version": "0.42.1", "clip_sample": False,
              "set_alpha_to_one": False, "skip_prk_steps": True, "sample_max_value": 1.0} | SCHEDULE
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config, indent=2) + "\n")
    index = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.42.1",
             "feature_extractor": [None, None], "force_zeros_for_empty_prompt": True, "image_encoder": [None, None],
             "scheduler": ["diffusers", type(scheduler).__name__], "text_encoder": ["transformers", "CLIPTextModel"],
             "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
             "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    descriptions = {name: formula.describe(module, FACTORS.get(name)) for name, module in made.items()}
    formula.write_description(folder / "tensors.json", descriptions)


def call(unet, out, name, **more):
    draw = torch.Generator("cpu").manual_seed(1)
    randn = lambda *shape: torch.randn(shape, generator=draw)
    x, context, pooled = randn(2, 4, 12, 9), randn(2, 77, 80), randn(2, 40)
    ids = torch.tensor([[96.0, 72.0, 0.0, 0.0, 96.0, 72.0]] * 2)
    added = {"text_embeds": pooled, "time_ids": ids}
    output = unet(x, torch.tensor(37.25), context, added_cond_kwargs=added, **more).sample
    if name == "unet":
        out |= {"unet.latents": x, "unet.context": context, "unet.pooled": pooled}
    out[f"{name}.output"] = output


def pictures(pipe, out, about):
    config = pipe.scheduler.config
    schedulers = {
        "euler": EulerDiscreteScheduler.from_config(config),
        "euler-ancestral": EulerAncestralDiscreteScheduler.from_config(config),
        "ddim": DDIMScheduler.from_config(config),
        "dpm++2m": DPMSolverMultistepScheduler.from_config(config),
    }
    rows = {
        "plain": {},
        "ancestral": {"scheduler": "euler-ancestral"},
        "ddim": {"scheduler": "ddim", "negative_prompt": NEGATIVE},
        "dpm": {"scheduler": "dpm++2m"},
        "empty": {"negative_prompt": ""},
        "negative": {"negative_prompt": NEGATIVE},
        "ignored": {"negative_prompt_2": NEGATIVE_SECOND},
        "second": {"prompt_2": SECOND, "negative_prompt": NEGATIVE, "negative_prompt_2": NEGATIVE_SECOND},
        "unguided": {"guidance_scale": 1.0},
        "odd": {"height": 104, "width": 72},
        "rescaled": {"guidance_rescale": 0.7},
        "skip": {"clip_skip": 1, "negative_prompt": NEGATIVE},
    }
    for name, row in rows.items():
        pipe.scheduler = schedulers[row.get("scheduler", "euler")]
        more = {"height": HEIGHT, "width": WIDTH} | {k: v for k, v in row.items() if k != "scheduler"}
        run = lambda kind: pipe(PROMPT, num_inference_steps=STEPS, output_type=kind,
                                generator=torch.Generator("cpu").manual_seed(SEED), **more).images
        out[f"{name}.latents"] = run("latent")
        if name == "plain":
            out["plain.image"] = torch.tensor((run("np")[0] * 255).round().astype("uint8"))
    about["rows"] = rows


@torch.inference_mode()
def main():
    folder, made = GOLDEN / NAME, networks()
    scheduler = EulerDiscreteScheduler(**SCHEDULE)
    # As published: the second tokenizer pads with "!", whose id is 0.
    write_folder(folder, made, {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}, scheduler)
    scheduler = EulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    tokenizers = {name: CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")}
    pipe = StableDiffusionXLPipeline(**made, **tokenizers, scheduler=scheduler, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    out, about = {}, {"versions": versions(), "prompt": PROMPT, "seed": SEED, "steps": STEPS, "height": HEIGHT,
                      "width": WIDTH, "guidance_scale": 5.0}

    features, _, pooled, _ = pipe.encode_prompt(PROMPT, prompt_2=SECOND, do_classifier_free_guidance=False)
    out |= {"text.features": features, "text.pooled": pooled}
    call(made["unet"], out, "unet")
    pruned = formula.fill(UNet2DConditionModel(**PRUNED), "unet")
    call(pruned, out, "pruned")
    distilled = formula.fill(UNet2DConditionModel(**DISTILLED), "unet")
    scale = torch.tensor([8.0 - 1.0] * 2)
    embedding = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scale, embedding_dim=12)
    call(distilled, out, "distilled", timestep_cond=embedding)
    for name, unet in (("pruned", pruned), ("distilled", distilled)):
        unet.save_config(folder / name)
    with_more = made | {"pruned": pruned, "distilled": distilled}
    formula.write_description(folder / "tensors.json",
                              {name: formula.describe(module, FACTORS.get(name)) for name, module in with_more.items()})
    pictures(pipe, out, about)
    for name, tensor in out.items():
        assert tensor.isfinite().all(), name
    print({name: round(tensor.float().std().item(), 3) for name, tensor in out.items()})
    write_tensors(GOLDEN / f"{NAME}.safetensors", out, about)


if __name__ == "__main__":
    main()
