"""Stage `encode`: pictures -> `latents/`, captions -> `text/`."""

import io
import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from ldmkit.atomic import sweep, write_atomic, write_json
from ldmkit.caches.earlier import EarlierLatents
from ldmkit.caches.quality import held_out_quality, perceptual_terms
from ldmkit.caches.sets import real_lengths
from ldmkit.caches.shards import ShardedArrays
from ldmkit.caches.together import Share, gather
from ldmkit.components.hub import commit_of
from ldmkit.components.protocols import TextEncoder
from ldmkit.data.batches import picture_batches
from ldmkit.data.buckets import of_one_bucket
from ldmkit.data.captions import captions_of, read_captions, require_captions
from ldmkit.data.prepared import prepared_pictures
from ldmkit.errors import LdmkitError
from ldmkit.models.autoencoder import Autoencoder
from ldmkit.report import Reporter
from ldmkit.run.files import check
from ldmkit.run.grow import write_contents
from ldmkit.run.networks import BUCKETS, load_autoencoder
from ldmkit.run.workspace import Workspace
from ldmkit.signals import StopSignals, stopped
from ldmkit.training.clock import Clock
from ldmkit.training.device import processes

SHARD = 512
"""pictures, or captions, that a killed run may have to do again"""
BATCH = 64
CPU_PIXELS = 2**18
"""most pixels of a batch on a CPU: 64 pictures of 64x64, 4 of 256x256; more of them leave the cache"""


@torch.no_grad()
def encode_latents(workspace: Workspace) -> dict[str, float]:
    """Writes mean and std of every picture's posterior, plain and mirrored, their statistics and their quality.

    Those of pictures that did not change are taken over from the latents before a change to the pictures.

    `mean.npy` and `std.npy` are (N, F, C, h, w), F = 2 with the mirrored copy, else 1, in the index's order; they grow
    in shards, and a next run resumes after the last whole one. Several processes take turns by batches, and make to the
    bit what one does; the first of them writes the rest. With buckets the arrays are flat, bucket by bucket, and
    `buckets.json` has the latents' `shapes` (h, w), the bucket of each picture, and the `trained` sizes: width and
    height of the buckets that hold training pictures. `statistics.json` holds each channel's mean and std of
    z over the whole set, both draws and copies counted; `quality.json` is what the gate judges. In fp32 whatever
    precision trained the network: half precision's rounding would be as large as the posterior's own noise.
    """
    recipe, folder, team = workspace.recipe, workspace.folder("latents"), processes()
    terms = perceptual_terms(workspace)  # at once: what they lack must show before thousands of pictures are encoded
    pictures = prepared_pictures(workspace.index, recipe.data, workspace.run_dir, workspace.reporter)
    device = team.device
    autoencoder = load_autoencoder(recipe, workspace.folder("vae")).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    shapes = [
        (height // autoencoder.downsample, width // autoencoder.downsample) for width, height in recipe.data.shapes
    ]
    contents = [entry.sha256 for entry in workspace.index.entries]
    copies, channels, buckets = (2 if recipe.data.flip else 1), autoencoder.latent_channels, workspace.buckets()
    order = np.argsort(buckets, kind="stable")
    places = np.concatenate([[0], np.cumsum(np.prod(shapes, axis=1)[buckets[order]])])
    starts = np.arange(len(pictures) + 1)
    rows: tuple[int, ...] = (len(pictures), copies, channels, *shapes[0])
    if recipe.data.buckets:
        starts = copies * channels * places
        rows = (int(starts[-1]),)
    encoder = _Encoder(autoencoder, device, workspace.reporter)
    batch = BATCH if device.type == "cuda" else max(1, min(BATCH, CPU_PIXELS // math.prod(recipe.data.shapes[0])))
    whole = (np.dtype(recipe.latents.dtype), rows)
    earlier = EarlierLatents(workspace.parts["latents"], workspace.reporter)
    with team.main_process_first():
        if team.is_main_process:
            sweep(folder)
            write_contents(folder, workspace.index)
            if recipe.data.buckets:
                trained = [recipe.data.shapes[bucket] for bucket in np.unique(buckets[workspace.split()[0]])]
                write_json(folder / BUCKETS, {"shapes": shapes, "buckets": buckets.tolist(), "trained": trained})
            gather(folder, channels, buckets[order], starts)  # what several processes left that were stopped
        shards = ShardedArrays(folder, {"mean": whole, "std": whole}, joins=not team.is_main_process)
    with shards, StopSignals("encode latents", quiet=workspace.reporter.quiet) as signals:
        share = Share(shards, team, channels, batch)
        first = share.first
        if 0 < first < len(pictures):
            workspace.reporter.line(f"encode latents: resuming after picture {first} of {len(pictures)}")
        batches = [order[first:][places] for places in of_one_bucket(buckets[order[first:]], batch)]
        if earlier.rows:
            count = sum(contents[i] not in earlier.rows for own in batches for i in own)
            workspace.reporter.line(f"encode latents: {len(pictures) - first - count} taken over, {count} to encode")
        begins = starts[first + np.cumsum([0, *map(len, batches)])][share.rank :: share.count]
        batches = batches[share.rank :: share.count]
        new = [[k for k, i in enumerate(own) if contents[i] not in earlier.rows] for own in batches]
        loaded = picture_batches(pictures, recipe.data, [own[at] for own, at in zip(batches, new, strict=True) if at])
        with workspace.reporter.bar("encode", first + sum(map(len, batches)), first) as bar:
            clock, done = Clock(), first
            for number, (own, at) in enumerate(zip(batches, new, strict=True), 1):
                shape = (len(own), copies, channels, *shapes[buckets[own[0]]])
                mean, std = np.empty((2, *shape), dtype=np.float32)  # (B, F, C, h, w) each
                earlier.fill(mean, std, [contents[i] for i in own])
                if at:
                    with clock.waiting():
                        pixels = next(loaded)
                    for copy in range(copies):
                        mean[at, copy], std[at, copy] = encoder(pixels.flip(-1) if copy else pixels)
                share.append(int(begins[number - 1]), mean, std, flat=bool(recipe.data.buckets))
                done += len(own)
                if number % -(-SHARD // batch) == 0 or number == len(batches) or signals.number:
                    share.save(done)
                bar.advance(len(own))
                if signals.number:
                    saved = f"saved up to picture {done} of {len(pictures)}" if share.count == 1 else "saved"
                    raise stopped(f"encode latents: {saved}; the same command resumes", signals.number)
            loader_wait = clock.share() if batches else 0.0
    team.wait_for_everyone()
    if not team.is_main_process:
        return {}
    found = gather(folder, channels, buckets[order], starts).channels(int(copies * places[-1]))
    statistics = {key: [row[key] for row in found] for key in ("mean", "std")} | {"num_pictures": len(pictures)}
    write_json(folder / "statistics.json", statistics)
    write_json(folder / "pictures.json", [picture.key for picture in pictures])
    quality = held_out_quality(workspace, autoencoder, terms, device)
    write_json(folder / "quality.json", {"held_out": quality, "channels": found})
    return {**{f"std_{i}": row["std"] for i, row in enumerate(found)}, "loader_wait": loader_wait}


class _Encoder:
    """Pixels (B, 3, H, W) -> mean and std of the posterior, (B, C, h, w) float32; parts that fit into the memory."""

    def __init__(self, autoencoder: Autoencoder, device: torch.device, reporter: Reporter) -> None:
        self.autoencoder = autoencoder
        self.device = device
        self.reporter = reporter
        self.largest = BATCH

    def __call__(self, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        try:
            found = [self._part(part) for part in torch.split(pixels, self.largest)]
        except torch.OutOfMemoryError:
            if self.largest == 1:
                raise LdmkitError(
                    f"encode: out of memory with one picture of {pixels.shape[-1]}x{pixels.shape[-2]} pixels; "
                    "close what else uses the GPU, or lower data.size"
                ) from None
        else:
            mean, std = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
            return mean, std
        # Outside of the except block, which would hold on to the tensors of the failed attempt.
        self.largest = min(self.largest, len(pixels)) // 2 or 1
        torch.cuda.empty_cache()
        self.reporter.line(f"encode: out of memory; continuing with {self.largest} pictures at a time")
        return self(pixels)

    def _part(self, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        own = pixels.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        posterior = self.autoencoder.encode(own)
        return posterior.mean.cpu().numpy(), posterior.std.cpu().numpy()


@torch.no_grad()
def encode_text(workspace: Workspace) -> dict[str, float | str]:
    """Writes each distinct caption's tokens once, and its states where the encoder is frozen.

    `captions.json`: the U distinct captions, the empty one first; `index.npy` (N,): each picture's caption in it,
    -1 for none, or (N, K) where a picture has up to K captions, -1 behind its last; `ids.npy`, `mask.npy` (U, L);
    `tokenizer.json`. Of a frozen encoder `states.npy` (S, D), all captions' states one behind the other, and
    `offsets.npy` (U + 1,), where each begins. The states of padding are left out, unless a U-Net without
    `mask_padding` is to attend to them.
    """
    recipe, folder = workspace.recipe, workspace.folder("text")
    sweep(folder)
    file = workspace.folder("captions") / "captions.jsonl"
    check(file)
    captions = read_captions(file)
    missing = [entry.key for entry in workspace.index.entries if entry.key not in captions]
    if recipe.caption.missing == "error":
        require_captions(captions, [entry.key for entry in workspace.index.entries])
    distinct = {"": 0}
    without = [-1 if recipe.caption.missing == "skip" else 0]
    numbers = [
        [distinct.setdefault(caption, len(distinct)) for caption in captions_of(captions[entry.key])]
        if entry.key in captions
        else without
        for entry in workspace.index.entries
    ]
    index = np.full((len(numbers), max(map(len, numbers))), -1, dtype=np.int32)
    for row, own in zip(index, numbers, strict=True):
        row[: len(own)] = own
    index = index[:, 0] if index.shape[1] == 1 else index
    encoder: TextEncoder = workspace.registry.build("text_encoder", recipe.text.table(), where="[text]")
    tokenizer = encoder.build_tokenizer([caption for caption in distinct if caption])
    ids, mask, cut = _tokens(tokenizer, list(distinct), encoder.max_tokens)
    _save(folder / "ids.npy", ids)
    _save(folder / "mask.npy", mask)
    _save(folder / "index.npy", index)
    write_json(folder / "captions.json", list(distinct))
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    if not encoder.trainable:
        assert recipe.t2i is not None
        lengths = real_lengths(mask) if recipe.t2i.mask_padding else np.full(len(mask), mask.shape[1])
        _write_states(workspace, encoder, tokenizer, ids, mask, lengths)
    return {
        "distinct_captions": float(len(distinct) - 1),
        "without_caption": float(len(missing)),
        "mean_tokens": float(mask[1:].sum(axis=1).mean()) if len(distinct) > 1 else 0.0,
        "captions_cut": float(cut),
        **commit_of(encoder),
    }


def _tokens(tokenizer: Tokenizer, captions: list[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Ids (U, L) int32, mask (U, L) uint8, and the number of captions that were cut to L."""
    ids = np.empty((len(captions), max_tokens), dtype=np.int32)
    mask = np.empty((len(captions), max_tokens), dtype=np.uint8)
    cut = 0
    for i in range(0, len(captions), SHARD):
        encodings = tokenizer.encode_batch(captions[i : i + SHARD])
        ids[i : i + SHARD] = [e.ids for e in encodings]
        mask[i : i + SHARD] = [e.attention_mask for e in encodings]
        cut += sum(bool(e.overflowing) for e in encodings)
    return ids, mask, cut


def _write_states(
    workspace: Workspace,
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    ids: np.ndarray,
    mask: np.ndarray,
    lengths: np.ndarray,
) -> None:
    """`states.npy` and `offsets.npy` of a frozen encoder: the first `lengths` (U,) states of each caption, float32."""
    folder, device = workspace.folder("text"), processes().device
    module = encoder.load_module(tokenizer).to(device).eval()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    _save(folder / "offsets.npy", offsets)
    whole = (np.dtype(np.float32), (int(offsets[-1]), encoder.context_dim))
    with ShardedArrays(folder, {"states": whole}) as shards, StopSignals("encode text") as signals:
        first = int(np.searchsorted(offsets, shards.done))
        if 0 < first < len(ids):
            workspace.reporter.line(f"encode text: resuming after caption {first} of {len(ids)}")
        with workspace.reporter.bar("encode text", len(ids), first) as bar:
            for i in range(first, len(ids), BATCH):
                stop = min(i + BATCH, len(ids))
                inputs = (torch.from_numpy(x[i:stop].astype(np.int64)).to(device) for x in (ids, mask))
                states = module(*inputs).float().cpu().numpy()
                shards.append(states=np.concatenate([own[:n] for own, n in zip(states, lengths[i:stop], strict=True)]))
                if stop % SHARD == 0 or stop == len(ids) or signals.number:
                    shards.save({})
                bar.advance(stop - i)
                if signals.number:
                    saved = f"saved up to caption {stop} of {len(ids)}"
                    raise stopped(f"encode text: {saved}; the same command resumes", signals.number)


def _save(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getbuffer())
