"""tests/golden/emoji.safetensors: one picture of the built-in model, and token ids."""

from common import GOLDEN, MODELS, write_tensors
from compare_model import compare


def main():
    out, about = compare(MODELS / "emoji", "a dog", seed=0, steps=25, guidance=2.0,
                         ids_of=["a dog", "", "a Zxqyv wübbel-trønk 😀!", "dog " * 40])
    write_tensors(GOLDEN / "emoji.safetensors", out, about)


if __name__ == "__main__":
    main()
