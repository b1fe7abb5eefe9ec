"""tests/golden/clip_skip.safetensors: latents of the tiny pipelines whose text encoder leaves out its last layer.

diffusers 0.42.1 fails here with transformers 5: it looks for `text_encoder.text_model.final_layer_norm`, which is now
`text_encoder.final_layer_norm`. So the features are made here as its `encode_prompt` would make them, and given to the
pipeline. The negative prompt is encoded in full.
"""

import torch

from common import GOLDEN, versions, write_tensors
from pipelines import HEIGHT, PROMPT, SEED, WIDTH, load, token_ids

STEPS, SKIP = 4, 1


@torch.inference_mode()
def main():
    out = {}
    about = {"versions": versions(), "prompt": PROMPT, "negative_prompt": "", "seed": SEED, "steps": STEPS,
             "height": HEIGHT, "width": WIDTH, "guidance_scale": 7.5, "clip_skip": SKIP}
    for name in ("tiny-sd1", "tiny-sd2"):
        pipe = load(GOLDEN / name)
        encode = lambda text: pipe.text_encoder(token_ids(pipe.tokenizer, text), output_hidden_states=True)
        hidden = encode(PROMPT).hidden_states[-(SKIP + 1)]
        features = pipe.text_encoder.final_layer_norm(hidden)
        out[name] = pipe(prompt_embeds=features, negative_prompt_embeds=encode("").last_hidden_state, height=HEIGHT,
                         width=WIDTH, num_inference_steps=STEPS, guidance_scale=7.5, output_type="latent",
                         generator=torch.Generator("cpu").manual_seed(SEED)).images
    write_tensors(GOLDEN / "clip_skip.safetensors", out, about)


if __name__ == "__main__":
    main()
