"""From a prompt to a PNG in a cold process: `ldmkit generate` against torch and transformers, time and peak memory.

python benchmarks/prompt_to_png.py DIR [--runs 5]        DIR as benchmarks/seed_bundle.py writes it

The seed's text U-Net and decoder and a text encoder of CLIP ViT-L/14's size, random weights, one 256x256 picture,
20 steps of DDIM, guidance 7.5 in one doubled batch. torch runs in inference mode, with the notebook's own networks. The
same noise goes in, so both PNGs are compared as well.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from cold import in_turns, print_table
from PIL import Image
from seed_bundle import GUIDANCE, PROMPT, STEPS

IN_TORCH = """
import sys
sys.path.insert(0, {benchmarks!r})
import numpy as np
import torch
from PIL import Image
from seed_networks import Decoder, TextUNet
from tokenizers import Tokenizer
from transformers import CLIPTextModel

folder, out = sys.argv[1:]
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
text_encoder = CLIPTextModel.from_pretrained(folder + "/clip").eval()
unet, decoder = TextUNet().eval(), Decoder().eval()
unet.load_state_dict(torch.load(folder + "/unet.pth", weights_only=True))
decoder.load_state_dict(torch.load(folder + "/decoder.pth", weights_only=True))
alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
with torch.inference_mode():
    encodings = tokenizer.encode_batch([{prompt!r}, ""])
    ids = torch.tensor([e.ids for e in encodings])
    mask = torch.tensor([e.attention_mask for e in encodings])
    context = text_encoder(ids, attention_mask=mask).last_hidden_state
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal((1, 4, 32, 32))
    x = torch.from_numpy(noise.astype(np.float32))
    times = [round(1000 - i * 1000 / {steps}) - 1 for i in range({steps})]
    for i, t in enumerate(times):
        cond, uncond = unet(torch.cat([x, x]), torch.full((2,), float(t)), context).chunk(2)
        eps = uncond + {guidance} * (cond - uncond)
        a = float(alphas_cumprod[t])
        b = float(alphas_cumprod[times[i + 1]]) if i + 1 < {steps} else 1.0
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        x = b**0.5 * x0 + (1 - b) ** 0.5 * eps
    pixels = decoder(x)[0].clamp(-1, 1)
Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(out)
"""


def main() -> None:
    """Prints a table, the ratio and how far the pictures agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of benchmarks/seed_bundle.py")
    parser.add_argument("--runs", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        script, out = Path(temporary) / "in_torch.py", Path(temporary) / "out"
        settings = {"prompt": PROMPT, "steps": STEPS, "guidance": GUIDANCE, "benchmarks": str(Path(__file__).parent)}
        script.write_text(IN_TORCH.format(**settings))
        generate = ["generate", PROMPT, "--bundle", str(chosen.folder / "bundle"), "--provider", "cpu"]
        commands = {
            "torch and transformers": [sys.executable, str(script), str(chosen.folder / "torch"), f"{temporary}/t.png"],
            "ldmkit generate": [sys.executable, "-m", "ldmkit", *generate, "--out", str(out)],
        }
        results = in_turns(commands, chosen.runs)
        paths = (Path(temporary) / "t.png", next(out.glob("*-0.png")))
        pictures = [np.asarray(Image.open(path), dtype=int) for path in paths]
    print_table(results)
    ours, theirs = results["ldmkit generate"], results["torch and transformers"]
    print(
        f"ratio ldmkit generate / torch: {ours.ratio(theirs):.2f} of the time, {ours.peak / theirs.peak:.2f} of the memory"
    )
    difference = np.abs(pictures[0] - pictures[1])
    print(f"the pictures differ by {difference.mean():.2f} of 255 on average, {difference.max()} at most")


if __name__ == "__main__":
    main()
