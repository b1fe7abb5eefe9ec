"""tests/golden/prompt_syntax.safetensors: latents of the tiny pipelines for prompts with weights and several chunks, and
for prompts with a textual inversion.

diffusers does not read this syntax, so the features are made here by the rules of AUTOMATIC1111's web UI: each chunk is
encoded by itself, its features are multiplied by the weights of its tokens, and then all of them by the factor that
gives the chunk the mean that it had. The pipelines get them as `prompt_embeds`.

In SDXL, whose second text encoder takes the largest id for the end of a text, diffusers pools at a token of the textual
inversion; the web UI, whose ids have zeros in these places, at the end token.
"""

import torch
from diffusers import StableDiffusionXLPipeline

import formula
from common import GOLDEN, versions, write_tensors
from img2img import sdxl
from pipelines import HEIGHT, SEED, WIDTH, load

STEPS, GUIDANCE = 4, 5.0
TOKEN, INVERSION = "<cat>", "a photo of <cat> in rain"
# The prompt, and the texts of each chunk with their weights.
PROMPT = "a photo of (the red:1.5) fox, BREAK in [the] rain"
CHUNKS = [[("a photo of", 1.0), ("the red", 1.5), ("fox,", 1.0)], [("in", 1.0), ("the", 1 / 1.1), ("rain", 1.0)]]
# Fewer chunks than the prompt: an empty one is added.
NEGATIVE = "(blurry)"
NEGATIVE_CHUNKS = [[("blurry", 1.1)], []]


def encode(tokenizer, encoder, chunks, hidden):
    """The features of all chunks, and the pooled feature of the first."""
    features, pooled = [], None
    for chunk in chunks:
        ids, weights = [tokenizer.bos_token_id], [1.0]
        for text, weight in chunk:
            tokens = tokenizer(text, add_special_tokens=False).input_ids
            ids += tokens
            weights += [weight] * len(tokens)
        ids.append(tokenizer.eos_token_id)
        ids += [tokenizer.pad_token_id] * (77 - len(ids))
        weights = torch.tensor(weights + [1.0] * (77 - len(weights)), dtype=torch.float64)
        output = encoder(torch.tensor([ids]), output_hidden_states=True)
        x = (output.hidden_states[-2] if hidden else output.last_hidden_state).double()
        weighted = x * weights[None, :, None]
        features.append((weighted * (x.mean() / weighted.mean())).float())
        pooled = pooled if pooled is not None else output[0]
    return torch.cat(features, dim=1), pooled


@torch.inference_mode()
def main():
    out = {}
    about = {"versions": versions(), "prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "steps": STEPS,
             "height": HEIGHT, "width": WIDTH, "guidance_scale": GUIDANCE, "chunks": len(CHUNKS),
             "token": TOKEN, "inversion": INVERSION}
    run = lambda pipe, **more: pipe(
        height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent",
        generator=torch.Generator("cpu").manual_seed(SEED), **more).images
    for name in ("tiny-sd1", "tiny-sd2"):
        pipe = load(GOLDEN / name)
        texts = [encode(pipe.tokenizer, pipe.text_encoder, chunks, False)[0] for chunks in (CHUNKS, NEGATIVE_CHUNKS)]
        out[name] = run(pipe, prompt_embeds=texts[0], negative_prompt_embeds=texts[1])
    pipe = load(GOLDEN / "tiny-sd1")
    pipe.load_textual_inversion({TOKEN: formula.weight("embedding", TOKEN, (2, 32))})
    out["inversion"] = run(pipe, prompt=INVERSION, negative_prompt=TOKEN)
    pipe = StableDiffusionXLPipeline(**sdxl(), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    texts = []
    for chunks in (CHUNKS, NEGATIVE_CHUNKS):
        first, _ = encode(pipe.tokenizer, pipe.text_encoder, chunks, True)
        second, pooled = encode(pipe.tokenizer_2, pipe.text_encoder_2, chunks, True)
        texts.append((torch.cat([first, second], dim=-1), pooled))
    out["tiny-sdxl"] = run(pipe, prompt_embeds=texts[0][0], pooled_prompt_embeds=texts[0][1],
                           negative_prompt_embeds=texts[1][0], negative_pooled_prompt_embeds=texts[1][1])
    for tokenizer, encoder, width in ((pipe.tokenizer, pipe.text_encoder, 32), (pipe.tokenizer_2, pipe.text_encoder_2, 48)):
        vectors = {TOKEN: formula.weight("embedding", f"{TOKEN}/{width}", (2, width))}
        pipe.load_textual_inversion(vectors, text_encoder=encoder, tokenizer=tokenizer)
    out["sdxl-inversion"] = run(pipe, prompt=INVERSION, negative_prompt=TOKEN)
    texts = []
    for text in (INVERSION, TOKEN):
        features, _, pooled, _ = pipe.encode_prompt(text, device="cpu", do_classifier_free_guidance=False)
        text = pipe.maybe_convert_prompt(text, pipe.tokenizer_2)
        ids = pipe.tokenizer_2(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        assert ids.max() > pipe.tokenizer_2.eos_token_id
        end = ids[0].tolist().index(pipe.tokenizer_2.eos_token_id)
        states = pipe.text_encoder_2(ids, output_hidden_states=True).last_hidden_state
        at_end = pipe.text_encoder_2.text_projection(states[:, end])
        assert (at_end - pooled).abs().max() > 0.1
        texts.append((features, at_end))
    out["sdxl-inversion-a1111"] = run(
        pipe, prompt_embeds=texts[0][0], pooled_prompt_embeds=texts[0][1], negative_prompt_embeds=texts[1][0],
        negative_pooled_prompt_embeds=texts[1][1])
    write_tensors(GOLDEN / "prompt_syntax.safetensors", out, about)
    print({name: round(tensor.std().item(), 3) for name, tensor in out.items()})


if __name__ == "__main__":
    main()
