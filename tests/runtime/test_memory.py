"""The least memory that a size takes, against what the networks themselves attend to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from ldmkit.errors import LdmkitError
from ldmkit.models.build import build_unet
from ldmkit.recipe import Recipe, find_recipe, load_recipe
from ldmkit.recipe.training import DiTTraining
from ldmkit.runtime import memory
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.onnx_backend import OnnxBackend

SHIPPED = Path(__file__).parents[2] / "exports" / "toy-cats"
DIT = DiTTraining(use="dit", steps=1, patch_size=2, width=16, depth=1, num_heads=2)


@pytest.mark.parametrize("levels", ["[1,2]", "[2]", "[]", DIT], ids=["1-2", "2", "none", "dit"])
def test_scores_of_the_finest_attention(levels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["unet.channels=[32,32,64]", *([] if levels is DIT else [f"unet.attention_levels={levels}"])]
    recipe = load_recipe(find_recipe("toy-cats"), overrides)
    if levels is DIT:
        recipe = recipe.model_copy(update={"unet": DIT})
    assert recipe.unet is not None
    seen = []
    attend = functional.scaled_dot_product_attention

    def spy(q: torch.Tensor, k: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        seen.append(4 * q.shape[1] * q.shape[2] * k.shape[2])
        return attend(q, k, *others, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        build_unet(recipe, 8)(torch.zeros(1, 8, 8, 16), torch.zeros(1))
    assert list(memory._scores(recipe.unet, 8 * 16)) == [2 * max(seen)]


def test_a_size_that_no_memory_holds_is_refused_before_a_graph_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the largest square that may fit, which is then let through."""
    opened = []
    monkeypatch.setattr(OnnxBackend, "_session", lambda _, name: opened.append(name))
    monkeypatch.setattr(memory, "total_memory", lambda: 24 << 30)
    bundle = Bundle.load(SHIPPED)
    bundle.manifest.recipe["t2i"]["key_of_another_version"] = 1
    with pytest.raises(LdmkitError, match=r"4096x4096; one picture .* 512 GiB .* 24; squares of up to (\d+) ") as error:
        bundle.generate("a cat", size=(4096, 4096))
    assert not opened
    side = int(str(error.value).split("up to ")[1].split()[0])
    recipe = Recipe.model_validate_json(json.dumps(bundle.manifest.recipe), extra="ignore")
    needs = [memory.least_memory(recipe, ((side + more) // 8,) * 2, text=True) for more in (0, 32)]
    assert needs[0] <= 24 << 30 < needs[1]
