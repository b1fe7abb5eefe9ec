"""Remakes everything in tests/golden except clip-tokenizer/, which is the input: python make_goldens.py"""

import added_tokens
import emoji
import lora_merge
import noise
import pipelines
import prompts
import schedulers
import tiny_models
import tokenizer

for part in (tokenizer, added_tokens, prompts, tiny_models, pipelines, schedulers, noise, lora_merge, emoji):
    part.main()
    print(part.__name__, "done")
