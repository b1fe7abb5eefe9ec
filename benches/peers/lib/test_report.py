"""python3 -m unittest discover -s lib -t . (in benches/peers)"""

import unittest

from lib import report

MACHINE = {"cpu": "a CPU", "threads": 2, "cores": 4, "flags": ["avx2"], "memory_gib": 8, "system": "Linux",
           "date": "2026-11-28", "load_average": [0.1]}
SETTINGS = {"model": "a model", "rounds": 2, "repeat": 2, "pictures": 1}


def made(results, missing={}):
    return report.document(MACHINE, SETTINGS, {"torch": {"torch": "2.15.0", "filelock": "4"}}, results, missing)


class Report(unittest.TestCase):
    def test_ratios_are_taken_in_each_round(self):
        # The second round ran on a machine that was ten times as slow.
        found = made({"sdshard-f32": {"rounds": [{"unet 32": [1.0, 1.0]}, {"unet 32": [10.0]}], "failed": {}},
                      "torch-f32": {"rounds": [{"unet 32": [2.0, 2.2]}, {"unet 32": [21.0]}], "failed": {}}})
        figure = found["figures"]["unet 32"]["torch-f32"]
        self.assertAlmostEqual(figure["to_sdshard"], 2.1)
        self.assertAlmostEqual(figure["median"], (2.1 + 21) / 2)
        self.assertEqual((figure["min"], figure["max"], figure["values"]), (2.0, 21.0, 3))
        self.assertNotIn("to_openvino", figure)

    def test_what_failed_or_is_missing_is_named_and_the_rest_is_shown(self):
        results = {"sdshard-f32": {"rounds": [{"memory 256 tiny": [2**30]}], "failed": {},
                                   "checks": {"memory 256 tiny": 1e-6}},
                   "candle-f32": {"rounds": [{}], "failed": {"256x256, full decoder": "killed"}}}
        text = report.markdown(made(results, {"torch-f32": "no network"}))
        self.assertIn("| peak memory of the process, 256×256, tiny decoder | sdshard-f32 | 1.00 GiB |", text)
        self.assertIn("- **candle-f32**, 256x256, full decoder: failed: killed", text)
        self.assertIn("- **torch-f32**: missing: no network", text)
        self.assertIn("versions: torch 2.15.0\n", text)

    def test_cells_are_in_order_and_the_fastest_is_first(self):
        results = {"sdshard-f32": {"rounds": [{"load": [3.0], "vae 64": [2.0], "vae 32": [1.0], "text_encoder": [4.0]}],
                                   "failed": {}},
                   "torch-f32": {"rounds": [{"vae 32": [0.5]}], "failed": {}}}
        found = made(results)
        self.assertEqual(list(found["figures"]), ["text_encoder", "vae 32", "vae 64", "load"])
        text = report.markdown(found)
        self.assertLess(text.index("torch-f32 | 0.5 s"), text.index("sdshard-f32 | 1 s"))


if __name__ == "__main__":
    unittest.main()
