"""src/cli/check_picture.txt: the small picture that `sdshard devices --check` draws on every device, as the mean colours
of its 64 blocks of 8 x 8 pixels. The request there (`src/cli/check_picture.rs`) says the same."""

import torch

from common import MODELS, versions
from compare_model import compare

OUT = MODELS.parent / "src/cli/check_picture.txt"
PROMPT, SEED, STEPS, GUIDANCE, SIZE, BLOCK = "a red apple", 0, 2, 2.0, 64, 8


def main():
    out, _ = compare(MODELS / "emoji", PROMPT, SEED, STEPS, GUIDANCE, SIZE, SIZE)
    blocks = out["image"].to(torch.float64).unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).mean((-1, -2)).round()
    lines = [" ".join("".join(f"{int(value):02x}" for value in colour) for colour in row) for row in blocks]
    about = f"# {PROMPT!r}, seed {SEED}, {STEPS} steps, guidance {GUIDANCE}, {SIZE} x {SIZE}: mean colours of {BLOCK} x {BLOCK} pixels."
    made = f"# Made by tests/reference/check_picture.py with {', '.join(f'{k} {v}' for k, v in versions().items())}."
    OUT.write_text("\n".join([about, made, *lines]) + "\n")


if __name__ == "__main__":
    main()
