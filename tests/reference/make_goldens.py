"""Remakes everything in tests/golden: python make_goldens.py"""

import added_tokens
import emoji
import noise
import pipelines
import schedulers
import tiny_models
import tokenizer

for part in (tokenizer, added_tokens, tiny_models, pipelines, schedulers, noise, emoji):
    part.main()
    print(part.__name__, "done")
