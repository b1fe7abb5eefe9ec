"""tests/golden/config_keys.json: the keys that the reference's networks read from their configs, with their defaults."""

import inspect

from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig

from common import GOLDEN, versions, write_rows


def defaults(cls):
    return {name: p.default for name, p in inspect.signature(cls.__init__).parameters.items()
            if name not in ("self", "args", "kwargs")}


def main():
    classes = {cls.__name__: defaults(cls)
               for cls in (UNet2DConditionModel, ControlNetModel, AutoencoderKL, AutoencoderTiny)}
    classes["CLIPTextConfig"] = {k: v for k, v in CLIPTextConfig().to_dict().items() if k[0] != "_"}
    write_rows(GOLDEN / "config_keys.json", {"versions": versions(), "classes": classes}, {})


if __name__ == "__main__":
    main()
