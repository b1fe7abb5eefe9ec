"""tests/golden/added_tokens.json: token ids of transformers' CLIPTokenizer.from_pretrained on folders that keep added tokens
in all the places there are. Each case is a set of files that replace or complete a plain folder over CLIP's first 1,000
merges, a prompt, and its ids as the pipeline computes them: after `maybe_convert_prompt`.

`tokenizer.json` is given as what differs from the file that the library writes: `type` false leaves out the model's
type, `pairs` false writes merges as texts, other keys are top-level ones."""

import json
import tempfile
from pathlib import Path

from diffusers.loaders import TextualInversionLoaderMixin
from transformers import CLIPTokenizer

from clip_vocab import SPECIALS, merges, vocabulary, write_tokenizer
from common import GOLDEN, versions, write_rows
from pipelines import token_ids

MERGES = 1000
N = 512 + MERGES + 2


def token(content, **flags):
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False,
            "special": False} | flags


def whole(changes):
    """A tokenizer.json as the library writes it, with what a case changes."""
    changes, lines = dict(changes), merges(MERGES)
    typed, pairs = changes.pop("type", True), changes.pop("pairs", True)
    model = {"dropout": None, "unk_token": SPECIALS[1], "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
             "fuse_unk": False, "vocab": vocabulary(lines), "merges": [m.split() if pairs else m for m in lines]}
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    file = {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": N - 2 + i} | token(s, special=True) for i, s in enumerate(SPECIALS)],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": True},
            "post_processor": None, "decoder": None, "model": ({"type": "BPE"} if typed else {}) | model}
    return file | changes


LISTED = {str(N): token("<cat-toy>"), str(N + 1): token("<cat-toy>_1"), str(N + 2): token("<cat-toy>_2")}
MAP = {"bos_token": SPECIALS[0], "eos_token": SPECIALS[1], "unk_token": SPECIALS[1], "pad_token": SPECIALS[1]}
CASES = [
    ("added_tokens.json", {"added_tokens.json": {"<cat-toy>": N}}, ["a <cat-toy> in", "a<cat-toy>in", "a <CAT-TOY>"]),
    ("ids of added_tokens.json only order the tokens", {"added_tokens.json": {"<b>": N + 9, "<a>": N + 4}},
     ["<a> <b>"]),
    ("a token that differs in case", {"added_tokens.json": {"<Cat>": N}}, ["<Cat>", "<cat>"]),
    ("a word of the vocabulary", {"added_tokens.json": {"the": 700}}, ["the other", "THE"]),
    ("several vectors", {"added_tokens.json": {"<cat-toy>": N, "<cat-toy>_1": N + 1, "<cat-toy>_2": N + 2}},
     ["a <cat-toy> in", "<cat-toy><cat-toy>", "<cat-toy>_1", "<CAT-TOY> <cat-toy>", "<cat-toy> " * 30]),
    ("a vector is missing between", {"added_tokens.json": {"<cat-toy>": N, "<cat-toy>_2": N + 1}}, ["a <cat-toy> in"]),
    ("special by the map", {"added_tokens.json": {"<x>": N}, "special_tokens_map.json":
                            MAP | {"additional_special_tokens": ["<x>", "<y>"]}}, ["a <x> <X> <y> <Y>"]),
    ("added_tokens_decoder", {"tokenizer_config.json": MAP | {"model_max_length": 77, "added_tokens_decoder": LISTED}},
     ["a <cat-toy> in", "<|endoftext|> <|ENDOFTEXT|>"]),
    ("added_tokens_decoder stands for the other files",
     {"tokenizer_config.json": MAP | {"model_max_length": 77, "added_tokens_decoder": LISTED},
      "added_tokens.json": {"<dog>": N + 3}, "special_tokens_map.json": MAP | {"pad_token": "!"},
      "tokenizer.json": {"added_tokens": [{"id": N} | token("<fox>")]}},
     ["a <dog> <fox> <cat-toy> in"]),
    ("how it is matched", {"tokenizer_config.json": MAP | {"model_max_length": 77, "added_tokens_decoder": {
        str(N): token("<l>", lstrip=True, normalized=False), str(N + 1): token("<r>", rstrip=True),
        str(N + 2): token("one", single_word=True), str(N + 3): token("<Raw>", normalized=False)}}},
     ["a <l> b", "a  <r>  b", "one anyone one", "<RAW> <Raw> <raw> <R>"]),
    ("a special token with rules of its own", {"tokenizer_config.json": MAP | {"model_max_length": 77,
        "added_tokens_decoder": {str(N - 2): token(SPECIALS[0], normalized=False, special=True),
                                 str(N - 1): token(SPECIALS[1], lstrip=True, special=True)}}},
     ["a  <|endoftext|> b <|STARTOFTEXT|> <|EndOfText|>"]),
    ("tokenizer.json", {"tokenizer.json": {"added_tokens": [{"id": N - 1} | token(SPECIALS[1], special=True),
                                                            {"id": N} | token("<cat-toy>", normalized=False)]}},
     ["a <cat-toy> in", "<CAT-TOY>", "<|ENDOFTEXT|>"]),
    ("tokenizer.json beside added_tokens.json", {"tokenizer.json": {"added_tokens": [{"id": N} | token("<cat>")]},
                                                 "added_tokens.json": {"<dog>": N, "<fox>": N + 1}},
     ["a <cat> <dog> <fox> in"]),
    ("old tokenizer.json", {"tokenizer.json": {"type": False, "pairs": False}}, ["It's the Fox  in 2 boxes"]),
    ("tokenizer.json with other steps", {"tokenizer.json": {"normalizer": None, "pre_tokenizer": None}},
     ["It's the Fox  in 2 boxes"]),
    ("tokenizer.json that pads and truncates", {"tokenizer.json": {
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": 4, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "!"},
        "truncation": {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}}},
     ["the fox in the box in the fox in the box"]),
    ("maps that disagree", {"special_tokens_map.json": MAP | {"pad_token": "!", "bos_token": token("?")},
                            "tokenizer_config.json": MAP | {"model_max_length": 77}}, ["wow! the fox?"]),
    ("a padding that is no token yet", {"special_tokens_map.json": MAP | {"pad_token": "[PAD]"}}, ["the [PAD] [pad]"]),
    ("a role of its own", {"tokenizer_config.json": MAP | {"model_max_length": 77, "style_token": "<style>",
        "mask_token": "<mask>"}}, ["<style> of <mask>"]),
    ("split special tokens", {"tokenizer_config.json": MAP | {"model_max_length": 77, "split_special_tokens": True},
                              "added_tokens.json": {"<dog>": N}}, ["a <|endoftext|> <dog>"]),
    ("32 tokens", {"tokenizer_config.json": MAP | {"model_max_length": 32}}, ["the " * 40]),
    ("32 tokens by the old name", {"tokenizer_config.json": MAP | {"max_len": 32}}, ["the " * 40]),
]


def main():
    rows = []
    for name, files, prompts in CASES:
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(folder, MERGES)
            for file, value in files.items():
                value = whole(value) if file == "tokenizer.json" else value
                (Path(folder) / file).write_text(json.dumps(value), encoding="utf-8")
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            convert = lambda prompt: TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)
            ids = [token_ids(tokenizer, convert(prompt))[0].tolist() for prompt in prompts]
            rows.append({"case": name, "files": files, "prompts": prompts, "ids": ids})
    write_rows(GOLDEN / "added_tokens.json", {"versions": versions(), "merges": MERGES}, {"rows": rows})


if __name__ == "__main__":
    main()
