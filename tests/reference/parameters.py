"""Makes parameters.json: the keys and values that the expression of A1111's web UI finds in lines of settings."""

import json
import random
import re
from pathlib import Path

PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
LINES = [
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1",
    'Steps: 20, Lora hashes: "a: 0123456789, b: abcdef0123", Version: v1.7.0',
    'Steps: 20, Hires prompt: "one, \\"two\\": 3\\nfour 🦊", Denoising strength: 0.4',
    'ControlNet 0: "Module: canny, Model: x [1], Weight: 1.0", Size: 8x8',
    '"quoted: 1, not closed: 2, Size: 3',
    'Model: "a" b, Seed: 2',
    'Model: "", Seed: 2',
    "a: 1, bb: 2, c-/ d: 3, -e: 4,, f f : 5, ünïcode: ß, 狐狸: 赤",
    "no settings here, only (words:1.2) and [more: less:0.5]",
]


def main():
    numbers = random.Random(0)
    words = ["ab", "c", "_", " ", " ", "-", "/", ":", ":", ",", ",", '"', '"', "\\", "é", "狐", "(", ".", "1"]
    lines = LINES + ["".join(numbers.choices(words, k=numbers.randrange(4, 24))) for _ in range(400)]
    rows = [{"line": line, "pairs": PAIR.findall(line)} for line in lines]
    path = Path(__file__).resolve().parent.parent / "golden" / "parameters.json"
    path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
