"""tests/golden/tokenizer.json: token ids of transformers' CLIPTokenizer on CLIP's real merges.

Special tokens typed in a prompt: <|startoftext|> is looked for after lower-casing (`normalized`), so in any case. So is
<|endoftext|> when the padding is "!"; when it is the padding itself, only its exact spelling counts, and another case
is split like any text. "!" as padding is a special token wherever it stands."""

import tempfile
import unicodedata

from transformers import CLIPTokenizer

from clip_vocab import write_tokenizer
from common import GOLDEN, versions, write_rows
from pipelines import token_ids

PADS = {"eot": "<|endoftext|>", "bang": "!"}
CAFE = "Café Ångström résumé naïve"
TEXTS = [
    "",
    " ",
    "dog",
    "a photo of an astronaut riding a horse on mars",
    "A Photo of an ASTRONAUT",
    " ".join(["cat"] * 75),
    " ".join(["cat"] * 76),
    " ".join(["one", "two", "three", "four"] * 40),
    "!",
    "wow!!! so red!",
    "hello!world ! !",
    "a cat 😀 and a 🚀🚀",
    "👨‍👩‍👧‍👦 family",
    unicodedata.normalize("NFC", CAFE),
    unicodedata.normalize("NFD", CAFE),
    "<|endoftext|>",
    "a <|endoftext|> b",
    "<|startoftext|>x<|endoftext|>y",
    "a <|ENDOFTEXT|> b",
    "<|StartOfText|>A",
    "一只猫在月球上",
    "ねこ と 犬、東京。",
    "고양이",
    "1234",
    "4k 8k hd, 3d render 1:1",
    "it's don't we're I'd you'll they've I'm",
    "IT'S DON'T ''s 'stuff",
    "line one\nline two\tand\r\nthree   spaces",
    "\u00a0no\u3000break\u2003space\u0085next",
    "wait... what?!?! -- (really) [[no]] {yes}",
    "(masterpiece:1.3), (word:1.3), [bad], ((two)) <lora:x:0.8>",
    "supercalifragilisticexpialidocious" * 6,
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "مرحبا بالعالم",
    "שלום עולם",
    "zero\u200dwidth\u200bjoiner",
    "İstanbul STRASSE ẞ ß ŉ",
    "ﬁne ½ ² Ⅷ ٣ 五",
    "x_y-z/w\\v|u a+b=c #tag @me 50%",
    "don’t “quote” – dash—em…",
    "\x00 \x07control\x7f \ufffd",
]


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for pad, token in PADS.items():
            write_tokenizer(folder, pad=token)
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            rows += [{"text": t, "pad": pad, "ids": token_ids(tokenizer, t)[0].tolist()} for t in TEXTS]
    # The rows with the other padding only where something besides the padding changes, and a few more.
    eot = {r["text"]: r["ids"] for r in rows if r["pad"] == "eot"}
    unpadded = lambda ids, pad: [i for i in ids if i != pad]
    keep = [r for r in rows if r["pad"] == "eot" or r["text"] in TEXTS[:4]
            or unpadded(r["ids"], 0) != unpadded(eot[r["text"]], 49407) + [49407]]
    write_rows(GOLDEN / "tokenizer.json", {"versions": versions()}, {"rows": keep})


if __name__ == "__main__":
    main()
