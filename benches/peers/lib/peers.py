"""The programs that are measured: a row of the table each."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Peer:
    name: str
    environment: str  # requirements/NAME.txt
    worker: str  # workers/NAME.py
    options: dict = field(default_factory=dict)  # what the worker reads
    needs: tuple = ("inputs",)  # what lib/models.py makes for it
    exact: bool = False  # computes in f32, so that outputs must be the reference's
    decoders: tuple = ("full", "tiny")
    flags: tuple = ()  # the CPU must have one of them

    def absent(self, flags):
        """Why this CPU cannot run it, or None."""
        if self.flags and not set(self.flags) & set(flags):
            return f"the CPU has none of {', '.join(self.flags)}"


DIRECT = 'strategy = "single"\nconvolution = "direct"\n'
BF16 = ("avx512_bf16", "amx_bf16")
OPENVINO = ("inputs", "openvino")
OPENVINO_INT8 = ("inputs", "openvino-int8")


def torch(name, **options):
    bf16 = options.get("dtype") == "bfloat16"
    exact = not bf16 and not options.get("int8")
    return Peer(f"torch-{name}", "torch", "peer_torch", options, flags=BF16 if bf16 else (), exact=exact)


# The first is the one that others are compared with, in every round.
PEERS = [
    Peer("sdshard-f32", "plain", "peer_sdshard", {}, exact=True),
    Peer("sdshard-direct", "plain", "peer_sdshard", {"map": DIRECT}, exact=True),
    Peer("sdshard-f16", "plain", "peer_sdshard", {"arguments": ["--dtype", "f16"]}),
    Peer("sdshard-bf16", "plain", "peer_sdshard", {"arguments": ["--dtype", "bf16"]}),
    Peer("sdshard-int8", "plain", "peer_sdshard", {"arguments": ["--dtype", "int8"]}),
    Peer("openvino-f32", "openvino", "peer_openvino", {"precision": "f32"}, OPENVINO, exact=True),
    Peer("openvino-bf16", "openvino", "peer_openvino", {"precision": "bf16"}, OPENVINO, flags=BF16),
    Peer("openvino-int8", "openvino", "peer_openvino", {"precision": "f32", "weights": "int8"}, OPENVINO_INT8),
    Peer("openvino-genai-f32", "openvino", "peer_openvino_genai", {"precision": "f32"}, OPENVINO, exact=True),
    Peer("openvino-genai-bf16", "openvino", "peer_openvino_genai", {"precision": "bf16"}, OPENVINO, flags=BF16),
    Peer("openvino-genai-int8", "openvino", "peer_openvino_genai", {"precision": "f32", "weights": "int8"},
         OPENVINO_INT8),
    torch("f32"),
    torch("f32-channels-last", channels_last=True),
    torch("f32-compile", channels_last=True, compile=True),
    torch("bf16", dtype="bfloat16"),
    torch("bf16-channels-last", dtype="bfloat16", channels_last=True),
    torch("bf16-compile", dtype="bfloat16", channels_last=True, compile=True),
    torch("int8", channels_last=True, compile=True, int8=True),
    Peer("stable-diffusion.cpp-f16", "stable_diffusion_cpp", "peer_stable_diffusion_cpp", {"type": "f16"}),
    Peer("stable-diffusion.cpp-q8_0", "stable_diffusion_cpp", "peer_stable_diffusion_cpp", {"type": "q8_0"}),
    Peer("candle-f32", "candle", "peer_candle", exact=True, decoders=("full",)),
]


def chosen(names):
    """The peers with these names, in the order of the table; all if there are no names. A name that no peer has stands
    for all that begin with it and a dash."""
    wanted = set()
    for name in names:
        found = [peer for peer in PEERS if peer.name == name]
        found = found or [peer for peer in PEERS if peer.name.startswith(name + "-")]
        if not found:
            raise ValueError(f"--only {name}: there is no such peer; --list prints the names")
        wanted |= {peer.name for peer in found}
    return [peer for peer in PEERS if not names or peer.name in wanted]
