"""Stage `encode`: pictures -> `latents/`, captions -> `text/`."""

from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from ldmkit.atomic import write_json
from ldmkit.components import TextEncoder
from ldmkit.data.captions import read_captions
from ldmkit.errors import LdmkitError
from ldmkit.stages.context import StageContext
from ldmkit.stages.engine import start_engine
from ldmkit.stages.networks import load_autoencoder
from ldmkit.stages.picture_batches import picture_batches

BATCH = 64


@torch.no_grad()
def encode_latents(context: StageContext) -> dict[str, float]:
    """Writes mean and std of every picture's posterior, plain and mirrored, and their statistics.

    `mean.npy` and `std.npy` are (N, F, C, h, w), F = 2 with the mirrored copy, else 1, in the index's order;
    `statistics.json` holds each channel's mean and std of z over the whole set, both draws and copies counted.
    """
    recipe, folder = context.recipe, context.folder("latents")
    pictures = context.index.pictures()
    device = start_engine().device
    autoencoder = load_autoencoder(recipe, context.folder("vae")).to(device)
    size = recipe.data.size // autoencoder.downsample
    shape = (len(pictures), 2 if recipe.data.flip else 1, autoencoder.latent_channels, size, size)
    dtype = np.dtype(recipe.latents.dtype)
    files = {name: folder / f".{name}.npy.tmp" for name in ("mean", "std")}
    arrays = {name: open_memmap(file, mode="w+", dtype=dtype, shape=shape) for name, file in files.items()}
    batches = [range(i, min(i + BATCH, len(pictures))) for i in range(0, len(pictures), BATCH)]
    total, squares = np.zeros(shape[2]), np.zeros(shape[2])
    with context.reporter.bar("encode", len(pictures)) as bar:
        for batch, pixels in zip(batches, picture_batches(pictures, recipe.data, batches), strict=True):
            for copy in range(shape[1]):
                own = pixels.to(device)
                posterior = autoencoder.encode(own.flip(-1) if copy else own)
                mean, std = (x.double().cpu().numpy() for x in (posterior.mean, posterior.std))
                arrays["mean"][batch.start : batch.stop, copy] = mean.astype(dtype)
                arrays["std"][batch.start : batch.stop, copy] = std.astype(dtype)
                total += mean.sum(axis=(0, 2, 3))
                squares += (mean**2 + std**2).sum(axis=(0, 2, 3))
            bar.advance(len(batch))
    count = shape[0] * shape[1] * size * size
    channel_mean = total / count
    channel_std = np.sqrt(squares / count - channel_mean**2)
    for name, file in files.items():
        arrays[name].flush()
        file.replace(folder / f"{name}.npy")
    statistics = {"mean": channel_mean.tolist(), "std": channel_std.tolist(), "num_pictures": len(pictures)}
    write_json(folder / "statistics.json", statistics)
    write_json(context.folder("vae") / "latent_statistics.json", statistics)  # so that the VAE's folder is whole
    write_json(folder / "pictures.json", [picture.key for picture in pictures])
    return {f"std_{i}": float(value) for i, value in enumerate(channel_std)}


@torch.no_grad()
def encode_text(context: StageContext) -> dict[str, float]:
    """Writes each distinct caption's tokens once, and its states where the encoder is frozen.

    `captions.json`: the U distinct captions, the empty one first; `index.npy` (N,): each picture's caption in it,
    -1 for none; `ids.npy`, `mask.npy` (U, L); `states.npy` (U, L, D); `tokenizer.json`.
    """
    recipe, folder = context.recipe, context.folder("text")
    captions = read_captions(context.folder("captions") / "captions.jsonl")
    missing = [entry.key for entry in context.index.entries if not captions.get(entry.key)]
    if missing and recipe.caption.missing == "error":
        raise LdmkitError(
            f"{len(missing)} of {len(context.index.entries)} pictures have no caption, {missing[0]} first; "
            'give them one, or set caption.missing to "skip" or "empty"'
        )
    distinct = {"": 0}
    index = np.empty(len(context.index.entries), dtype=np.int32)
    for i, entry in enumerate(context.index.entries):
        caption = captions.get(entry.key)
        if not caption:
            index[i] = -1 if recipe.caption.missing == "skip" else 0
        else:
            index[i] = distinct.setdefault(caption, len(distinct))
    encoder: TextEncoder = context.registry.build("text_encoder", recipe.text.table(), where="[text]")
    tokenizer = encoder.build_tokenizer([caption for caption in distinct if caption])
    encodings = tokenizer.encode_batch(list(distinct))
    ids = np.array([e.ids for e in encodings], dtype=np.int64)
    mask = np.array([e.attention_mask for e in encodings], dtype=np.int64)
    if not encoder.trainable:
        _save(folder / "states.npy", _states(context, encoder, tokenizer, ids, mask))
    _save(folder / "ids.npy", ids)
    _save(folder / "mask.npy", mask)
    _save(folder / "index.npy", index)
    write_json(folder / "captions.json", list(distinct))
    tokenizer.save(str(folder / "tokenizer.json"))
    cut = sum(bool(e.overflowing) for e in encodings)
    return {
        "distinct_captions": float(len(distinct) - 1),
        "without_caption": float(len(missing)),
        "mean_tokens": float(mask[1:].sum(axis=1).mean()) if len(distinct) > 1 else 0.0,
        "captions_cut": float(cut),
    }


def _states(
    context: StageContext, encoder: TextEncoder, tokenizer: object, ids: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """(U, L, D) float32 states of a frozen encoder."""
    device = start_engine().device
    module = encoder.load_module(tokenizer).to(device).eval()  # type: ignore[arg-type]
    states = np.empty((*ids.shape, encoder.context_dim), dtype=np.float32)
    with context.reporter.bar("encode text", len(ids)) as bar:
        for i in range(0, len(ids), BATCH):
            part = slice(i, min(i + BATCH, len(ids)))
            inputs = (torch.from_numpy(x[part]).to(device) for x in (ids, mask))
            states[part] = module(*inputs).float().cpu().numpy()
            bar.advance(part.stop - part.start)
    return states


def _save(path: Path, array: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    temporary.replace(path)
