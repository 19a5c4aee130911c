"""`ldmkit generate` in a cold process against a bare Python script that makes the same onnxruntime calls.

python benchmarks/cold_generate.py [BUNDLE_DIR] [--prompt TEXT] [--runs 7]

The script knows the bundle by heart: it reads no manifest, checks no hash and parses no options. Both draw one
picture of the prompt by the bundle's own steps and guidance, and their PNGs must agree to a level.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from cold import in_turns, print_table
from PIL import Image

from ldmkit import shipped
from ldmkit.diffusion.process import make_schedule
from ldmkit.runtime.find import default_bundle
from ldmkit.runtime.manifest import read_manifest

BARE = """
import sys

import numpy as np
import onnxruntime as ort
from PIL import Image
from tokenizers import Tokenizer

folder, prompt, out = sys.argv[1:]
times, alphas, sigmas, scale, prediction, shape = {numbers!r}

def opened(name):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(folder + "/" + name + ".onnx", options, providers=["CPUExecutionProvider"])

encodings = Tokenizer.from_file(folder + "/tokenizer.json").encode_batch([prompt, ""])
ids = np.array([e.ids for e in encodings], np.int64)
mask = np.array([e.attention_mask for e in encodings], np.int64)
text_encoder = opened("text_encoder")
known = [each.name for each in text_encoder.get_inputs()]
context = text_encoder.run(None, {{k: v for k, v in (("ids", ids), ("mask", mask)) if k in known}})[0]
unet = opened("unet_t2i")
fixed = {{"context": context, "context_mask": mask}}
fixed = {{each.name: fixed[each.name] for each in unet.get_inputs() if each.name in fixed}}
x = np.random.Generator(np.random.PCG64(0)).standard_normal(shape)[None]
for i, t in enumerate(times):
    both = np.concatenate([x, x]).astype(np.float32)
    output = unet.run(None, {{"x_t": both, "t": np.full(2, t, np.float32), **fixed}})[0]
    output = scale * output[:1] + (1 - scale) * output[1:]
    a, s = alphas[i], sigmas[i]
    x0 = {{
        "eps": lambda: (x - s * output) / a,
        "x0": lambda: output,
        "v": lambda: (a * x - s * output) / (a * a + s * s),
        "flow": lambda: (x - s * output) / (a + s),
    }}[prediction]()
    kept = sigmas[i + 1] / s
    x = kept * x + (alphas[i + 1] - kept * a) * x0
pixels = opened("vae_decoder").run(None, {{"latents": x.astype(np.float32)}})[0]
levels = np.rint((np.clip(pixels[0], -1, 1) + 1) * 127.5).astype(np.uint8)
Image.fromarray(levels.transpose(1, 2, 0)).save(out)
"""


def main() -> None:
    """Prints a table and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="default: the one that `ldmkit generate` takes")
    parser.add_argument("--prompt", default="a cute orange cat")
    parser.add_argument("--runs", type=int, default=7)
    chosen = parser.parse_args()
    folder = chosen.bundle or default_bundle(Path("exports"), shipped.exports_dir())
    manifest, _ = read_manifest(folder)
    schedule = make_schedule(**manifest.schedule.model_dump())
    grid = [values.tolist() for values in schedule.grid(manifest.defaults.steps)]
    latent = manifest.latent
    shape = (latent.channels, latent.height, latent.width)
    numbers = (*grid, manifest.defaults.guidance_scale, manifest.prediction, shape)
    with tempfile.TemporaryDirectory() as temporary:
        script, out = Path(temporary) / "bare.py", Path(temporary) / "out"
        script.write_text(BARE.format(numbers=numbers))
        # The same file again and again; `generate` would not overwrite one, so it gets a folder.
        generate = ["generate", chosen.prompt, "--bundle", str(folder), "--sampler", "euler", "--provider", "cpu"]
        commands = {
            "bare script": [sys.executable, str(script), str(folder), chosen.prompt, f"{temporary}/bare.png"],
            "ldmkit generate": [sys.executable, "-m", "ldmkit", *generate, "--out", str(out)],
        }
        results = in_turns(commands, chosen.runs)
        first = next(out.glob("*-0.png"))
        pictures = [np.asarray(Image.open(path), dtype=int) for path in (Path(temporary) / "bare.png", first)]
        difference = int(np.abs(pictures[0] - pictures[1]).max())
    if difference > 1:
        raise SystemExit(f"the two draw different pictures: they differ by {difference} of 255")
    print_table(results)
    ratio = results["ldmkit generate"].ratio(results["bare script"])
    print(f"ratio ldmkit generate / bare script: {ratio:.2f} ({manifest.defaults.steps} steps of {manifest.name})")


if __name__ == "__main__":
    main()
