"""Makes models/clip-tokenizer/merges.txt from the bpe_simple_vocab_16e6.txt.gz that every CLIP package carries.
Run once; the result is committed. Usage: python clip_merges.py bpe_simple_vocab_16e6.txt.gz"""

import gzip
import sys

from clip_vocab import MERGES

COUNT = 49152 - 256 - 2  # the file has more; CLIP uses these

lines = gzip.open(sys.argv[1], "rt", encoding="utf-8").read().split("\n")
MERGES.parent.mkdir(parents=True, exist_ok=True)
MERGES.write_text("\n".join(["#version: 0.2", *lines[1 : COUNT + 1]]) + "\n", encoding="utf-8")
