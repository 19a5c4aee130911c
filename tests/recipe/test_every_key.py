"""Every key that the recipes know, spoilt in every way: each is refused, by us and by a reader of our JSON Schema."""

import copy
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldmkit.components.registry import Registry
from ldmkit.errors import LdmkitError
from ldmkit.recipe import RecipeFile, find_recipe, load_recipe
from ldmkit.recipe.template import to_toml
from ldmkit.recipe.training import NETWORKS

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
EVERY_KEY = Path("every-key")  # of the recipe cats, those at their default as well
EVERY_KEY_DIT = Path("every-key-dit")  # with the other network
Place = tuple[str, ...]

# Written down by hand: what each key must refuse. A number's neighbours just outside its range, a word misspelt.
OUT_OF_RANGE: dict[str, list[Any]] = {
    "seed": [-1, 2**31],
    "path": [""],
    "source": ["", "hub:a/b", "hub:a/b/c.tar", "http://a/b.zip", "toycats"],
    "num_pictures": [0, -5],
    "subject": [""],
    "grow": [-0.1, 1.1],
    "tune_decoder_steps": [-1],
    "size": [0, 7, 2049, 100_000, [64], [64, 7], [64, 64, 64]],
    "buckets": [7, 2049, [64], [[64]], [[64, 7]], [[2049, 64]]],
    "crop": ["centre", ""],
    "held_out": [-0.01, 1, 1.5],
    "max_bad": [-0.1, 1.1],
    "max_missing": [-0.1, 1.1],
    "num_workers": [-1, 65],
    "cache_gb": [-0.1],
    "missing": ["Error", "ignore"],
    "use": ["", "no-such-thing"],
    "task": ["<CAPTIONS>", ""],
    "num_captions": [0, 65],
    "num_beams": [0],
    "max_new_tokens": [0],
    "width": [0, -1],
    "layers": [0],
    "heads": [0],
    "max_tokens": [0, 2],
    "vocab_size": [258],
    "channels": [[], [64], [0, 64], [64, -64]],
    "latent_channels": [0, 65],
    "num_res_blocks": [0, 9],
    "attention_levels": [[0], [-1]],
    "norm_groups": [0, -32],
    "patch_size": [0, 17],
    "depth": [0, 65],
    "dropout": [-0.1, 1],
    "steps": [0, -1],
    "epochs": [0, -1],
    "batch_size": [0],
    "grad_accumulation": [0],
    "optimizer": ["sgd", "AdamW"],
    "learning_rate": [0, -1e-4, 1.1],
    "discriminator_learning_rate": [0, -1e-4, 1.1],
    "max_adaptive_weight": [0, -1],
    "lr_schedule": ["cosin", "linear"],
    "warmup_steps": [-1],
    "betas": [[0.9], [0.9, 0.99, 0.999], [0.9, 1], [-0.1, 0.9]],
    "weight_decay": [-0.01],
    "grad_clip": [-1],
    "ema_decays": [[-0.1], [1.0], 0.9],
    "precision": ["float16", "fp8"],
    "compile": ["yes", ""],
    "ramp_steps": [-1],
    "plateau_evaluations": [0],
    "plateau_psnr": [-1],
    "max_psnr_drop": [-1],
    "max_lpips_rise": [-1],
    "weight_factor": [-0.1, 1],
    "min_psnr": [-1],
    "min_ssim": [-0.1, 1.1],
    "max_lpips": [-1],
    "min_latent_signal": [-0.1, 1],
    "max_latent_kurtosis": [-1],
    "max_high_frequency": [-0.1, 1.1],
    "p2_k": [0],
    "p2_gamma": [-1],
    "log_every": [0],
    "keep_every": [-1],
    "eval_every": [0],
    "sample_every": [0],
    "checkpoint_every": [0],
    "keep_checkpoints": [0],
    "weight": [-1],
    "start_step": [-1],
    "start_epoch": [-1],
    "reduction": ["max"],
    "backbone": ["vgg16"],
    "form": ["bce"],
    "draw": ["always"],
    "dtype": ["float64"],
    "schedule": ["sigmoid"],
    "num_timesteps": [0, 1, 100_001],
    "beta_start": [0, 1, -1],
    "beta_end": [0, 1],
    "prediction": ["epsilon"],
    "weighting": ["min-snr"],
    "min_snr_gamma": [0],
    "timesteps": ["normal"],
    "velocity_floor": [0, 1.1],
    "logit_mean": [-5.5, 5.5],
    "embedding_std": [0, 2.1],
    "time_dim": [0, 1],
    "num_heads": [0],
    "caption_dropout": [-0.1, 1.1],
    "guidance_scale": [-1, 101],
    "variance": ["learned"],
    "tolerance": [0, -1],
    "opset": [17, 21],
}
ANYTHING = {"exclude", "follow_links", "model", "name", "plugins", "pretrained"}  # text of any kind
FRACTIONS = {
    "held_out",
    "max_bad",
    "max_missing",
    "grad_clip",
    "ema_decays",
    "weight",
    "caption_dropout",
    "guidance_scale",
}  # 0 and 1 as well


def table_of(path: Path) -> dict[str, Any]:
    if path in (EVERY_KEY, EVERY_KEY_DIT):
        overrides = ["unet.use=dit", "t2i.use=dit"] if path == EVERY_KEY_DIT else []
        return tomllib.loads(to_toml(load_recipe(find_recipe("cats"), overrides)))
    return tomllib.loads(path.read_text())


def leaves(table: dict[str, Any], place: Place = ()) -> Iterator[tuple[Place, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, (*place, key))
        else:
            yield (*place, key), value


def every_key() -> Iterator[tuple[dict[str, Any], Place, Any]]:
    """(recipe, place, value) of each key that the recipes set, once for each component and type of value."""
    seen = set()
    for path in [EVERY_KEY, EVERY_KEY_DIT, *RECIPES]:
        table = table_of(path)
        for place, value in leaves(table):
            inner = table
            for part in place[:-1]:
                inner = inner[part]
            # Most keys of the networks are the same ones.
            key = (place, inner.get("use") if place[0] not in NETWORKS else None, type(value))
            if key not in seen:
                seen.add(key)
                yield table, place, value


def changed(table: dict[str, Any], place: Place, value: Any, *, key: str | None = None) -> dict[str, Any]:
    """A copy with another value at `place`, or with the value under another key."""
    table = copy.deepcopy(table)
    inner = table
    for part in place[:-1]:
        inner = inner[part]
    if key is not None:
        del inner[place[-1]]
    inner[key or place[-1]] = value
    return table


def wrong_types(value: Any, *, fraction: bool) -> list[Any]:
    """Values of every other type that TOML has, one near to the right one among them."""
    if isinstance(value, bool):
        return [int(value), str(value).lower(), 0.5, [value], {}]
    if isinstance(value, int) and not fraction:
        return [str(value), value + 0.5, True, [value], {}]
    if isinstance(value, int | float):
        return [str(value), True, [value], {}]
    if isinstance(value, str):
        return [7, 0.5, False, [value], {"use": value}]
    spoilt = [[*value[:-1], wrong] for wrong in (True, {}, [value], *(["64"] if value else []))]
    return [value[0] if value else 3, "64, 128", True, {}, *spoilt]


def mistake(table: dict[str, Any], registry: Registry) -> str:
    """The message that refuses the recipe; empty where nothing does."""
    try:
        RecipeFile(Path("some/cat.toml"), {"name": "cat", **table}).validate(registry)
    except LdmkitError as error:
        return str(error)
    return ""


def where(place: Place) -> str:
    return f"[{'.'.join(place[:-1])}] {place[-1]}" if len(place) > 1 else place[-1]


def test_a_typo_in_any_key(registry: Registry, validator: Any) -> None:
    for table, place, value in every_key():
        middle = len(place[-1]) // 2
        typo = place[-1][:middle] + place[-1][middle + 1 :]
        mutated = changed(table, place, value, key=typo)
        message = mistake(mutated, registry)
        assert message.startswith("some/cat.toml: "), (typo, message)
        assert f'unknown key "{typo}" (did you mean "{place[-1]}"?)' in message
        assert f"[{'.'.join(place[:-1])}]" in message or len(place) == 1
        assert not validator.is_valid(mutated), typo


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_section_misspelt(path: Path, registry: Registry, validator: Any) -> None:
    table = table_of(path)
    for section in (key for key, value in table.items() if isinstance(value, dict)):
        typo = section[:-1] + "y"
        mutated = changed(table, (section,), table[section], key=typo)
        assert f'unknown key "{typo}" (did you mean "{section}"?)' in mistake(mutated, registry)
        assert not validator.is_valid(mutated), typo


def test_a_wrong_type_of_any_key(registry: Registry, validator: Any) -> None:
    for table, place, value in every_key():
        for wrong in wrong_types(value, fraction=place[-1] in FRACTIONS):
            mutated = changed(table, place, wrong)
            message = mistake(mutated, registry)
            assert message.startswith("some/cat.toml: "), (place, wrong, message)
            assert where(place) in message, (place, wrong)
            assert not validator.is_valid(mutated), (place, wrong)


def test_any_key_out_of_range(registry: Registry, validator: Any) -> None:
    for table, place, _ in every_key():
        if place[-1] in ANYTHING:
            continue
        for wrong in OUT_OF_RANGE.get(place[-1], []):
            if place[:2] == ("vae", "losses") and place[-1] == "channels" and wrong == [64]:
                continue  # enough for a discriminator
            mutated = changed(table, place, wrong)
            message = mistake(mutated, registry)
            assert message.startswith("some/cat.toml: "), (place, wrong, message)
            assert place[-1] in message or place[-1] == "use", (place, wrong)
            assert not validator.is_valid(mutated), (place, wrong)
    unknown = {place[-1] for _, place, value in every_key() if not isinstance(value, bool)} - OUT_OF_RANGE.keys()
    assert unknown <= ANYTHING, "say in OUT_OF_RANGE what these keys must refuse"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_right(path: Path, registry: Registry, validator: Any) -> None:
    validator.validate(table_of(path))
    assert RecipeFile.read(path).validate(registry).name == path.stem


def test_mistakes_are_found_before_torch_is_loaded(full_recipe: Path, tmp_path: Path) -> None:
    """In a real process: each of these leaves with code 1, and none loads torch."""
    table = table_of(full_recipe)
    wrong = [
        changed(table, ("vae", "batch_size"), "16"),
        changed(table, ("vae", "epochs"), 200, key="epoch"),
        changed(table, ("vae", "losses", "kl", "reduction"), "max"),
        changed(table, ("sampler", "use"), "dim"),
        changed(table, ("t2i", "num_heads"), 7),
    ]
    for number, mutated in enumerate(wrong):
        (tmp_path / f"{number}.toml").write_text("\n".join(toml(mutated)))
    (tmp_path / "6.toml").write_text("[vae\n")
    code = """
import sys
from ldmkit.cli import main
for name in sys.argv[1:]:
    sys.argv = ["ldmkit", "recipe", "check", name]
    try:
        main()
    except SystemExit as end:
        print("code", end.code)
print("heavy", sorted({"torch", "transformers", "accelerate"} & sys.modules.keys()))
"""
    names = sorted(path.name for path in tmp_path.glob("*.toml"))
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:-1] == ["code 1"] * 6 + ["heavy []"]
    errors = [line for line in done.stderr.split("\n") if line]
    assert [line.split(":")[:2] for line in errors] == [["error", f" {name}"] for name in names]


def toml(table: dict[str, Any], place: Place = ()) -> list[str]:
    """TOML of our own for the tests; JSON's scalars and lists are TOML's."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += [f"[{'.'.join((*place, key))}]", *toml(value, (*place, key))]
    return lines
