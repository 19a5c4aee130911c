"""A training step of a recipe's transformer: compiled, not compiled, and then with torch's fused attention, in turns.

python -m benchmarks.training.transformer [--recipe photos-64] [--rounds 5] [--steps 10]

The network and its optimizer alone, by the engine that trains them; latents, of an autoencoder such as the recipe's
(f = 8, 32 channels), and text states are random. What is not compiled has batches cut to the longest caption, as in
training.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import torch

from benchmarks.command import run
from benchmarks.turns import Timing, in_turns, print_ratio, print_timings
from ldmkit.models import blocks
from ldmkit.models.dit import DiT
from ldmkit.recipe import find_recipe, load_recipe
from ldmkit.training.engine import Engine

CHANNELS, FACTOR = 32, 8
LONGEST = 24
"""tokens of the longest of 64 captions by `palette`"""


def side(recipe_name: str, steps: int, *, compiled: bool, fused: bool) -> Callable[[], tuple[float, float]]:
    """Takes so many steps; returns the seconds of one, none of them waiting."""
    recipe = load_recipe(find_recipe(recipe_name), [f"t2i.compile={'on' if compiled else 'off'}"])
    section = recipe.t2i
    assert section is not None
    width, longest = recipe.text.table()["width"], recipe.text.table()["max_tokens"]
    engine = Engine("t2i", section, num_samples=section.batch_size, seed=0)
    torch.manual_seed(0)
    model = engine.add(
        "model", DiT(CHANNELS, context_dim=width, **section.network()).to(memory_format=torch.channels_last)
    )
    batch, tokens = section.batch_size, longest if compiled else LONGEST
    x0 = torch.randn(batch, CHANNELS, recipe.data.size // FACTOR, recipe.data.size // FACTOR)
    inputs = x0 + torch.randn_like(x0), torch.rand(batch) * 1000, torch.randn(batch, tokens, width)
    mask = (torch.arange(tokens) < torch.randint(5, LONGEST, (batch, 1))).long()

    def never(*_: torch.Tensor) -> bool:
        return False

    def take() -> tuple[float, float]:
        with patch.object(blocks, "_products_are_faster", never) if fused else nullcontext():
            began = time.perf_counter()
            for _ in range(steps):
                engine.backward(((model(*inputs, mask) - x0) ** 2).mean())
                engine.step("model", list)
            return (time.perf_counter() - began) / steps, 0.0

    return take


def main(recipe: str = "photos-64", *, rounds: int = 5, steps: int = 10) -> None:
    make = partial(side, recipe, steps)
    sides = {
        "compiled": make(compiled=True, fused=False),
        "not compiled": make(compiled=False, fused=False),
        "fused attention": make(compiled=False, fused=True),
    }
    timings = {name: Timing(found) for name, found in in_turns(sides, rounds).items()}
    section = load_recipe(find_recipe(recipe)).t2i
    assert section is not None
    print_timings(timings, batch=section.batch_size)
    print_ratio(timings, "compiled", "fused attention")
    print_ratio(timings, "not compiled", "fused attention")


if __name__ == "__main__":
    run(main)
