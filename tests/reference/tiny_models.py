"""Two small random pipelines as diffusers folders.

tiny-sd1: SD 1.x form. f32, quick_gelu, 1x1 convolutions around the attention, one number of heads for all levels, PNDM
with epsilon prediction, padding <|endoftext|>; text encoder names with `text_model.`; tokenizer as vocab.json and
merges.txt; VAE attention under its old names.
tiny-sd2: SD 2.x form. f16, gelu, linear projections, heads per level, upcast_attention, DDIM with v prediction, padding
"!" (id 0); text encoder names without the prefix; tokenizer.json alone; UNet in two shards.

No group norm has one channel per group: such a norm would cancel every bias and time embedding before it.
"""

import json
import shutil

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from clip_vocab import write_tokenizer
from common import GOLDEN, randomise

STREAM_SIZE = 0.03
MERGES = 486  # 256 + 256 + 486 + 2 = 1000 tokens
OLD_VAE_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

# The keys of the published SD 1.5 configs: among others there is no scaling_factor (0.18215).
PUBLISHED_UNET_KEYS = """_class_name _diffusers_version act_fn attention_head_dim block_out_channels center_input_sample
    cross_attention_dim down_block_types downsample_padding flip_sin_to_cos freq_shift in_channels layers_per_block
    mid_block_scale_factor norm_eps norm_num_groups out_channels sample_size up_block_types""".split()
PUBLISHED_VAE_KEYS = """_class_name _diffusers_version act_fn block_out_channels down_block_types in_channels
    latent_channels layers_per_block norm_num_groups out_channels sample_size up_block_types""".split()

CLIP = dict(vocab_size=1000, hidden_size=32, intermediate_size=64, num_attention_heads=4, max_position_embeddings=77,
            projection_dim=32)
UNET = dict(
    sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=32,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
)
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=64, scaling_factor=0.18215, layers_per_block=1,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
                steps_offset=1, set_alpha_to_one=False)

SD1 = dict(
    name="tiny-sd1", seed=101,
    # bos 0 and eos 2 are what the published text encoder configs say; neither is a token of the tokenizer.
    clip=CLIPTextConfig(**CLIP, num_hidden_layers=2, hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2,
                        pad_token_id=1),
    # Heads of width 8, 8 and 12. Taken for a width, the 2 would mean 8, 8 and 12 heads.
    unet=dict(UNET, block_out_channels=(16, 16, 24), layers_per_block=2, norm_num_groups=8, attention_head_dim=2),
    vae=dict(VAE, block_out_channels=(8, 8, 16, 16), norm_num_groups=4),
    scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True, timestep_spacing="leading", prediction_type="epsilon"),
    extra={"clip_sample": False},
)
SD2 = dict(
    name="tiny-sd2", seed=202,
    clip=CLIPTextConfig(**CLIP, num_hidden_layers=3, hidden_act="gelu", bos_token_id=998, eos_token_id=999,
                        pad_token_id=0),
    unet=dict(UNET, block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8,
              attention_head_dim=(1, 4, 2), use_linear_projection=True, upcast_attention=True),
    vae=dict(VAE, block_out_channels=(8, 16, 24, 32), norm_num_groups=4),
    # Like the published SD 2.1 file, this one says skip_prk_steps and has no timestep_spacing: the classes' defaults
    # differ (leading for DDIM and PNDM, linspace for the others), and a scheduler made from this config takes its own.
    scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type="v_prediction"),
    extra={"skip_prk_steps": True},
    left_out=["timestep_spacing"],
)


@torch.inference_mode()
def calibrate(unet, vae):
    """Scale the last convolutions so that the UNet's output has deviation 1 and a picture stays mostly inside -1..1."""
    generator = torch.Generator("cpu").manual_seed(7)
    x, c = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 77, 32, generator=generator)
    unet.conv_out.weight.mul_(round(1 / unet(x, 500, c).sample.std().item(), 2))
    vae.decoder.conv_out.weight.mul_(round(0.45 / vae.decode(x[:, :, :8, :8] / 0.18215).sample.std().item(), 2))


def save_scheduler(folder, scheduler, extra, left_out=()):
    scheduler.save_pretrained(folder)
    path = folder / "scheduler_config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in left_out} | extra
    defaults = {"dynamic_thresholding_ratio", "rescale_betas_zero_snr", "sample_max_value", "thresholding",
                "clip_sample_range"}
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in defaults}, indent=2) + "\n")


def keep(path, keys):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: config[k] for k in keys}, indent=2) + "\n")


def model_index(folder, scheduler):
    parts = {"feature_extractor": [None, None], "safety_checker": [None, None],
             "scheduler": ["diffusers", type(scheduler).__name__], "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"]}
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
             "requires_safety_checker": False, **parts}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def text_tensors(model, prefix):
    """The text encoder's tensors under the published names (`prefix`) or those transformers 5 saves."""
    plain = {k.removeprefix("text_model."): v for k, v in model.state_dict().items() if "position_ids" not in k}
    return {"text_model." + k if prefix else k: v.contiguous() for k, v in plain.items()}


def text_config(folder, dtype):
    """Published text encoder configs name the type `torch_dtype` and the kind `clip_text_model`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("dtype", None)
    path.write_text(json.dumps(config | {"architectures": ["CLIPTextModel"], "torch_dtype": dtype}, indent=2) + "\n")


def rename_vae_attention(path, file):
    tensors = load_file(path / file)
    for new, old in OLD_VAE_NAMES.items():
        tensors = {k.replace(new, old) if "mid_block.attentions" in k else k: v for k, v in tensors.items()}
    save_file(tensors, path / file, metadata={"format": "pt"})


def make(spec):
    folder = GOLDEN / spec["name"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sd1 = spec is SD1
    seed = spec["seed"]
    text = randomise(CLIPTextModel(spec["clip"]), seed, STREAM_SIZE)
    unet = randomise(UNet2DConditionModel(**spec["unet"]), seed + 1, STREAM_SIZE)
    vae = randomise(AutoencoderKL(**spec["vae"]), seed + 2, STREAM_SIZE)
    calibrate(unet, vae)
    if not sd1:
        text, unet, vae = text.half(), unet.half(), vae.half()

    text.config.save_pretrained(folder / "text_encoder")
    text_config(folder / "text_encoder", "float32" if sd1 else "float16")
    save_file(text_tensors(text, prefix=sd1), folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    size = sum(p.numel() * p.element_size() for p in unet.parameters())
    unet.save_pretrained(folder / "unet", max_shard_size="5GB" if sd1 else size * 3 // 5)
    vae.save_pretrained(folder / "vae")
    if sd1:
        rename_vae_attention(folder / "vae", "diffusion_pytorch_model.safetensors")
        keep(folder / "unet" / "config.json", PUBLISHED_UNET_KEYS)
        keep(folder / "vae" / "config.json", PUBLISHED_VAE_KEYS)
    save_scheduler(folder / "scheduler", spec["scheduler"], spec["extra"], spec.get("left_out", ()))

    tokenizer = folder / "tokenizer"
    write_tokenizer(tokenizer, MERGES, pad="<|endoftext|>" if sd1 else "!")
    if not sd1:
        # As transformers 5 saves it: tokenizer.json and tokenizer_config.json.
        loaded = CLIPTokenizer.from_pretrained(tokenizer)
        shutil.rmtree(tokenizer)
        loaded.save_pretrained(tokenizer)
    model_index(folder, spec["scheduler"])
    return folder


def main():
    for spec in (SD1, SD2):
        make(spec)


if __name__ == "__main__":
    main()
