"""Virtual environments of the peers, one for each file of requirements/, and candle's program."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def failure(log):
    """The line of a log that says best what went wrong."""
    lines = [line.strip() for line in Path(log).read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"[\w.]*(error|exception)\b", line, re.IGNORECASE)]
    return (telling or lines or ["it printed nothing"])[-1][:300]


class Environments:
    def __init__(self, folder):
        self.folder = folder / "environments"
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.results = {}

    def python(self, name):
        return self.folder / name / "bin/python"

    def install(self, name):
        """Makes an environment unless it is there. Returns why it cannot be made, or None."""
        if name not in self.results:
            self.results[name] = self._install(name)
        return self.results[name]

    def _install(self, name):
        place, source = self.folder / name, HERE / "requirements" / f"{name}.txt"
        parts = [source, *sorted((HERE / "candle").rglob("*.*"))] if name == "candle" else [source]
        wanted = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
        stamp = place / "made-of"
        if stamp.is_file() and stamp.read_text() == wanted:
            return None
        print(f"installing {name}", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)
        commands = [[sys.executable, "-m", "venv", place],
                    [self.python(name), "-m", "pip", "install", "--no-cache-dir", "-r", source]]
        if name == "candle":
            manifest = HERE / "candle/Cargo.toml"
            commands.append([os.environ.get("CARGO", "cargo"), "build", "--release", "--locked",
                             "--manifest-path", manifest, "--target-dir", place / "build"])
        log = self.logs / f"install-{name}.txt"
        with open(log, "w") as out:
            for command in commands:
                try:
                    made = subprocess.run(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=variables())
                except OSError as error:
                    return f"{command[0]}: {error.strerror}"
                if made.returncode:
                    return failure(log)
        stamp.write_text(wanted)
        return None

    def versions(self, program):
        """The versions of sdshard and of all packages of the environments that are installed."""
        said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
        listed = {"sdshard": {"sdshard": said.split()[-1] if said else "?"}}
        for name, reason in self.results.items():
            if reason is None:
                command = [self.python(name), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
                text = subprocess.run(command, capture_output=True, text=True).stdout
                listed[name] = {package["name"]: package["version"] for package in json.loads(text)}
        if "candle" in listed:
            manifest = (HERE / "candle/Cargo.toml").read_text()
            listed["candle"]["candle-core"] = re.search(r'candle-core = "=(.*)"', manifest)[1]
        return listed


def variables():
    """This process's variables. candle and stable-diffusion.cpp are built for this machine, the latter with
    its fast matrix products for CPUs, which are not the default."""
    flags = (os.environ.get("RUSTFLAGS", "") + " -C target-cpu=native").strip()
    return os.environ | {"RUSTFLAGS": flags, "CMAKE_ARGS": "-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON"}
