"""Whether a bundle draws what its run draws in torch: PSNR between the two for many seeds.

python benchmarks/torch_agreement.py RUN BUNDLE_DIR [--num 100] [--steps 20] [--prompt TEXT] [--least 45] [--json]

The same noise, sampler, steps and guidance on both sides; half of the seeds draw the prompt, half draw without one.
Exit code 1 where a seed's PSNR is below --least.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mistakes import told
from PIL import Image

from ldmkit.cli.export import torch_backend
from ldmkit.runtime.backend import Backend
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import draw
from ldmkit.runtime.request import DrawRequest, PictureRequest
from ldmkit.runtime.settings import resolve


def psnr(picture: Image.Image, other: Image.Image) -> float:
    """dB over 8-bit levels; infinite where they are the same."""
    a, b = (np.asarray(each, dtype=np.float64) for each in (picture, other))
    error = ((a - b) ** 2).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def compare(run: Backend, bundle: Backend, wanted: Sequence[PictureRequest], *, steps: int) -> list[float]:
    """PSNR of each picture."""
    drawn = [
        draw(backend, resolve(backend, DrawRequest(wanted, steps=steps)), batch_size=10) for backend in (run, bundle)
    ]
    return [psnr(a, b) for a, b in zip(*drawn, strict=True)]


@told
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="runs/NAME")
    parser.add_argument("bundle", type=Path, help="folder of the bundle that was exported from it")
    parser.add_argument("--num", type=int, default=100, help="seeds (100)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (20)")
    parser.add_argument("--prompt", default="a cute orange cat")
    parser.add_argument("--least", type=float, default=45.0, help="dB that every seed must reach (45)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(argv)
    if min(chosen.num, chosen.steps) < 1:
        parser.error("--num and --steps must be at least 1")
    wanted = [PictureRequest(chosen.prompt if seed % 2 else "", seed) for seed in range(chosen.num)]
    run, bundle = torch_backend(chosen.run), Bundle.load(chosen.bundle)
    found = compare(run, bundle, wanted, steps=chosen.steps)
    passed = sum(each >= chosen.least for each in found)
    if chosen.json:
        print(json.dumps({"psnr": [min(each, 999.0) for each in found], "passed": passed, "num": chosen.num}))
    else:
        print(
            f"{passed} of {chosen.num} seeds at {chosen.least:g} dB or more: worst {min(found):.1f} dB, "
            f"median {float(np.median(found)):.1f} dB ({run.provider} against {bundle.provider}, {chosen.steps} steps)"
        )
    return 0 if passed == chosen.num else 1


if __name__ == "__main__":
    sys.exit(main())
