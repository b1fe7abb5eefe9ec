"""What the workers read: the model, inputs with the reference's outputs, and the model in the forms of the peers.
Everything is made once, by scripts in workers/ that run in torch's environment, and kept."""

import shutil
import subprocess
import sys

from lib.environments import HERE, failure


class Models:
    def __init__(self, folder, environments, model, sizes):
        self.environments, self.sizes, self.results = environments, sizes, {}
        self.model = model or folder / "models/random"
        # Of another model, other files.
        self.folder = folder / "models" / (str(model).strip("/").replace("/", "-") if model else "of-random")
        self.tiny = self.folder / "tiny-vae"

    def make(self, what):
        """Makes one of the things below unless it is there. Returns why it cannot be made, or None."""
        if what not in self.results:
            self.results[what] = getattr(self, "_" + what.replace("-", "_"))()
        return self.results[what]

    def inputs(self, size):
        return self.folder / f"inputs-{size}"

    def _random(self):
        if self.model.name != "random":
            return None
        script = HERE.parents[1] / "tests/reference/make_sd15.py"
        return self._script("random model", script, self.model, "--out", self.model)

    def _inputs(self):
        return self.make("random") or next(filter(None, (
            self._script(f"inputs for {size}", HERE / "workers/prepare_inputs.py", self.inputs(size),
                         self.model, self.tiny, self.inputs(size), str(size)) for size in self.sizes)), None)

    def _openvino(self):
        return self.make("inputs") or self._script("OpenVINO's form", HERE / "workers/prepare_openvino.py",
                                                   self.folder / "openvino", self.model, self.tiny,
                                                   self.folder / "openvino")

    def _openvino_int8(self):
        return self.make("openvino") or self._script("OpenVINO's int8", HERE / "workers/prepare_openvino_int8.py",
                                                     self.folder / "openvino-int8", self.folder / "openvino",
                                                     self.folder / "openvino-int8")

    def _script(self, what, script, result, *arguments):
        """Runs a script that fills the folder `result`, unless an earlier run has finished it."""
        if (result / "finished").is_file():
            return None
        reason = self.environments.install("torch")
        if reason:
            return f"{what} needs torch: {reason}"
        print(f"making {what}", file=sys.stderr)
        shutil.rmtree(result, ignore_errors=True)
        log = self.environments.logs / f"make-{result.name}.txt"
        with open(log, "w") as out:
            command = [self.environments.python("torch"), script, *arguments]
            made = subprocess.run(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        if made.returncode:
            return f"{what}: {failure(log)}"
        (result / "finished").touch()
        return None
