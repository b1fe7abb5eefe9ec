"""CLIP's vocabulary is a function of its merges. This writes it, whole or cut short."""

import json
from pathlib import Path

from common import MODELS

MERGES = MODELS / "clip-tokenizer" / "merges.txt"
SPECIALS = ["<|startoftext|>", "<|endoftext|>"]


def byte_symbols():
    """The 256 byte symbols in vocabulary order: printable bytes stand for themselves and come first; the other 68, in
    ascending order, become U+0100, U+0101, and so on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(len(others))]


def merges(count=None):
    """The first `count` merges (all: 48,894) as lines."""
    lines = MERGES.read_text(encoding="utf-8").splitlines()[1:]
    return lines if count is None else lines[:count]


def vocabulary(lines):
    """Token -> id: 256 bytes, 256 bytes with </w>, one per merge, the two specials."""
    symbols = byte_symbols()
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m.split()) for m in lines] + SPECIALS
    return {token: i for i, token in enumerate(tokens)}


def write_tokenizer(folder, count=None, pad="<|endoftext|>"):
    """vocab.json, merges.txt and the two small files beside them, as the published SD repositories have them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = merges(count)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocabulary(lines), ensure_ascii=True), encoding="utf-8")
    token = lambda text: {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {"bos_token": token(SPECIALS[0]), "eos_token": token(SPECIALS[1]), "pad_token": pad,
               "unk_token": token(SPECIALS[1])}
    config = {"add_prefix_space": False, "bos_token": SPECIALS[0], "do_lower_case": True, "eos_token": SPECIALS[1],
              "errors": "replace", "model_max_length": 77, "pad_token": pad, "tokenizer_class": "CLIPTokenizer",
              "unk_token": SPECIALS[1]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
