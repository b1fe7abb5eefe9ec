"""Remakes everything in tests/golden: python make_goldens.py"""

import added_tokens
import clip_skip
import controlnet
import emoji
import img2img
import lora
import lora_merge
import noise
import pipelines
import prompt_syntax
import prompts
import schedulers
import tiny_models
import tiny_sdxl
import tiny_vae
import tokenizer
import vae_tiling

for part in (tokenizer, added_tokens, prompts, tiny_models, pipelines, clip_skip, tiny_sdxl, controlnet, schedulers, noise,
             lora_merge, lora, img2img, prompt_syntax, tiny_vae, vae_tiling, emoji):
    part.main()
    print(part.__name__, "done")
