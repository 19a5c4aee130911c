"""What each part of a run is made from: whatever changes one of these makes the part stale. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldmkit.data.captions import captions_hash
from ldmkit.recipe import Recipe
from ldmkit.run.folder import Part, weights_of

LAYOUT = 2
"""raised whenever `encode` writes other files than it did"""


def parts_of(
    recipe: Recipe, run_dir: Path, *, pictures: str, caption_files: str, frozen: bool, starts: Mapping[str, str]
) -> dict[str, Part]:
    """Every part with the inputs that it would be made from now.

    pictures: hash of the data set; caption_files: of the captions beside it; frozen: whether the text encoder is, so
    that its states are cached; starts: SHA-256 of the weights that a network starts from, where they are not random.
    """
    data = recipe.data.fingerprint_keys()
    split = {"held_out": recipe.data.held_out, "seed": recipe.seed}
    pixels = {key: data[key] for key in ("size", "crop", "flip")}
    parts: dict[str, Part] = {}

    trained = {name: weights for name in ("vae", "unet", "t2i") if (weights := weights_of(run_dir / name))}

    def add(name: str, *made_of: str, **inputs: Any) -> None:
        known = {each: trained[each] for each in made_of if each in trained}
        inputs |= {"init_from": starts[name]} if name in starts else {}
        parts[name] = Part(run_dir / name, name, inputs, known)

    add(
        "captions",
        pictures=pictures,
        caption={k: v for k, v in recipe.caption.fingerprint_keys().items() if k != "missing"},
        caption_files=caption_files,
    )
    add("vae", pictures=pictures, data={**pixels, **split}, vae=recipe.vae.fingerprint_keys())
    cache = {"dtype": recipe.latents.dtype, "layout": LAYOUT}
    add("latents", "vae", vae=parts["vae"].fingerprint, latents=cache, data={**pixels, **split})
    captions = run_dir / "captions" / "captions.jsonl"
    done = parts["captions"].status().state == "done"
    add(
        "text",
        captions=captions_hash(captions) if done else "not yet written",
        text=recipe.text.fingerprint_keys(),
        missing=recipe.caption.missing,
        pictures=pictures,
        # Whether a U-Net attends to padding decides whether the padding's states are kept.
        **({"mask_padding": recipe.t2i.mask_padding, "layout": LAYOUT} if frozen else {}),
    )
    denoising = {
        "latents": parts["latents"].fingerprint,
        "use": {k: v for k, v in recipe.latents.fingerprint_keys().items() if k != "dtype"},
        "diffusion": recipe.diffusion.fingerprint_keys(),
        "data": {**pixels, **split},
    }
    add("unet", "vae", **denoising, unet=recipe.unet.fingerprint_keys())
    add("t2i", "vae", **denoising, text=parts["text"].fingerprint, t2i=recipe.t2i.fingerprint_keys())
    bundle = {name: parts[name].fingerprint for name in ("vae", "latents", "unet", "t2i", "text")}
    # Its own part, though the files lie in exports/: the sampler is left out, since it makes nothing stale.
    export: dict[str, Any] = {"opset": recipe.export.opset, "tolerance": recipe.export.tolerance}
    # Named only where asked for, so that they make no bundle stale that was exported before they were known.
    export |= {"precision": recipe.export.precision} if recipe.export.precision != "fp32" else {}
    export |= {"encoder": True} if recipe.export.encoder else {}
    add("bundle", *trained, **bundle, export=export)
    return parts
