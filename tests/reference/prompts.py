"""tests/golden/prompts.json: token ids of prompts with textual inversions, as diffusers' pipelines compute them after
`load_textual_inversion`: with a tiny text encoder over CLIP's first 1,000 merges, embeddings loaded one by one in the
order of a case, then `maybe_convert_prompt` and the tokenizer. The rows of the token embedding from the first new id on
are compared here with the vectors that were loaded; the file has ids only."""

import tempfile

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from clip_vocab import write_tokenizer
from common import GOLDEN, versions, write_rows
from pipelines import token_ids

MERGES = 1000
N = 512 + MERGES + 2
WIDTH = 8

# The name and the number of vectors of each embedding, and prompts.
CASES = [
    ([("<cat-toy>", 1)], ["a <cat-toy> in", "a<cat-toy>in", "a <CAT-TOY>", "the other", "", "(<cat-toy>:1.3)"]),
    ([("<cat-toy>", 3)], ["a <cat-toy> in", "<cat-toy><cat-toy>", "<cat-toy>_1", "<CAT-TOY> <cat-toy>",
                          "the <cat-toy>s", "<cat-toy> " * 30, "a <cat-toy>_2 <cat-toy>"]),
    ([("<a>", 2), ("<b>", 1), ("<c>", 4)], ["<c> and <a> and <b>", "<a><b><c>", "<b>, <b>."]),
    ([("easynegative", 2)], ["easynegative", "EasyNegative, the", "noteasynegatives", "easy negative"]),
    ([("EasyNegative", 2)], ["easynegative", "EasyNegative, the", "EASYNEGATIVE"]),
    ([("my cat", 2)], ["a my cat in", "my  cat", "my\ncat", "My Cat"]),
    ([("<big>", 75)], ["<big>", "the <big>", "<big> the"]),
    ([("<é>", 1), ("<e\u0301>x", 1)], ["<é> <e\u0301>", "<e\u0301>x"]),
    ([("zeb", 1), ("zebra", 2)], ["zeb by zebra", "zebras", "zebzebra"]),
]


class Pipeline(TextualInversionLoaderMixin):
    """What `load_textual_inversion` needs of a pipeline."""

    hf_device_map = None
    components = {}

    def __init__(self, folder):
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        config = CLIPTextConfig(vocab_size=len(self.tokenizer), hidden_size=WIDTH, intermediate_size=8,
                                num_hidden_layers=1, num_attention_heads=1)
        self.text_encoder = CLIPTextModel(config)


def main():
    rows = []
    for embeddings, prompts in CASES:
        with tempfile.TemporaryDirectory() as folder:
            write_tokenizer(folder, MERGES)
            pipe = Pipeline(folder)
        vectors = torch.arange(sum(count for _, count in embeddings) * WIDTH, dtype=torch.float32).view(-1, WIDTH)
        start = 0
        for name, count in embeddings:
            # A file with one key is a dictionary of it.
            pipe.load_textual_inversion({name: vectors[start:start + count]}, tokenizer=pipe.tokenizer,
                                        text_encoder=pipe.text_encoder)
            start += count
        table = pipe.text_encoder.get_input_embeddings().weight
        assert table.shape[0] == N + start and torch.equal(table[N:], vectors)
        ids = [token_ids(pipe.tokenizer, pipe.maybe_convert_prompt(prompt, pipe.tokenizer))[0].tolist()
               for prompt in prompts]
        rows.append({"embeddings": embeddings, "prompts": prompts, "ids": ids})
    write_rows(GOLDEN / "prompts.json", {"versions": versions(), "merges": MERGES}, {"rows": rows})


if __name__ == "__main__":
    main()
