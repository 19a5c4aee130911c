"""Writes a bundle: each network as an ONNX graph that was compared with torch, and all that the runtime needs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ldmkit
from ldmkit.export import networks as export_networks
from ldmkit.export.card import model_card
from ldmkit.export.certify import certify, draw_golden, rounded_bundle
from ldmkit.export.folder import new_bundle
from ldmkit.export.graph import compare, make_graph, save_graph, serialized
from ldmkit.export.half import rounded_as_on_gpu, to_half, weights_to_half
from ldmkit.export.model import Model
from ldmkit.export.networks import Network
from ldmkit.recipe.sections import Export
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.manifest import (
    CARD,
    FORMAT_VERSION,
    GOLDEN,
    NEEDS,
    PREVIEW,
    TEXT_ENCODER,
    TOKENIZER,
    UNET,
    UNET_T2I,
    VAE_DECODER,
    VAE_ENCODER,
    GraphEntry,
    Manifest,
    Precision,
    Text,
    file_entry,
    write_manifest,
)
from ldmkit.runtime.pictures import grid
from ldmkit.signals import StopSignals, stopped

NUM_PREVIEW = 8


def export_bundle(
    out_dir: Path,
    model: Model,
    options: Export,
    *,
    recipe: Mapping[str, Any],
    fingerprint: str,
    notes: Mapping[str, Any],
    preview_prompts: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Exports the model's networks to `out_dir`, the bundle's folder, and returns its manifest.

    `recipe`, `fingerprint` and `notes`, which say how it was trained, are for the manifest. The preview draws
    `preview_prompts` in turn, or unconditionally where there are none. `progress` gets a line for each thing begun.

    The modules are copied to the CPU in float32 and left as they are. An earlier bundle stays until the new one is
    whole; see `new_bundle`.

    Raises LdmkitError where a graph differs from torch by more than `options.tolerance`, or the pictures drawn by it by
    more than `options.precision` allows, naming it, and where `out_dir` holds anything that is no part of a bundle;
    Interrupted where a signal asked to stop.
    """
    own, latent, schedule, precision = model.networks, model.latent, model.schedule, options.precision
    with StopSignals("export") as signals, new_bundle(out_dir) as folder:

        def tell(line: str) -> None:
            if signals.number:
                raise stopped(f"export: nothing was written to {out_dir}; the same command begins anew", signals.number)
            if progress is not None:
                progress(line)

        text, multiple = None, latent.multiple or 1
        networks = {VAE_DECODER: export_networks.decoder(own.autoencoder, latent)}
        if options.encoder:
            networks[VAE_ENCODER] = export_networks.encoder(own.autoencoder, latent)
        if own.unet is not None:
            networks[UNET] = export_networks.unet(own.unet, latent, schedule, None, multiple=multiple)
        if own.text is not None:
            unet, encoder, tokenizer = own.text.unet, own.text.encoder, own.text.tokenizer
            # Its own `save` has an error of its own for a full disk.
            (folder / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8", newline="\n")
            text = Text(max_tokens=len(tokenizer.encode("").ids), context_dim=int(unet.context_dim or 0))
            networks[TEXT_ENCODER] = export_networks.text_encoder(encoder, tokenizer)
            networks[UNET_T2I] = export_networks.unet(unet, latent, schedule, text, multiple=multiple)
        graphs = {}
        for file, network in networks.items():
            tell(f"{file}: exporting")
            graphs[file] = write_graph(
                folder / file, network, precision=precision, tolerance=options.tolerance, opset=options.opset
            )
        manifest = Manifest.model_validate(
            {
                "format_version": FORMAT_VERSION,
                "needs": NEEDS,
                "written_by": ldmkit.__version__,
                "name": model.name,
                "created": datetime.now(UTC).replace(microsecond=0),
                "schedule": schedule,
                "prediction": model.prediction,
                "latent": latent,
                "picture_size": model.picture_size,
                "sizes": model.sizes,
                "precision": precision,
                "defaults": model.defaults,
                "examples": tuple(dict.fromkeys(preview_prompts)),
                "text": text,
                "files": {file.name: file_entry(file) for file in sorted(folder.iterdir())},
                "graphs": graphs,
                "recipe": recipe,
                "fingerprint": fingerprint,
                "notes": notes,
            }
        )
        write_manifest(folder, manifest)
        bundle = Bundle.load(folder, provider="cpu")
        tell("pictures: comparing with torch")
        with rounded_bundle(bundle) if precision == "fp16" else nullcontext(bundle) as tried:
            trajectories = certify(tried, networks, preview_prompts)
        tell(f"{PREVIEW}: drawing")
        prompts = [preview_prompts[k % len(preview_prompts)] for k in range(NUM_PREVIEW)] if preview_prompts else None
        grid(bundle.generate(prompts, n=1 if prompts else NUM_PREVIEW), columns=4).save(folder / PREVIEW)
        golden, sheet = draw_golden(bundle, preview_prompts)
        sheet.save(folder / GOLDEN)
        manifest = manifest.model_copy(update={"trajectories": trajectories, "golden": golden})
        (folder / CARD).write_text(model_card(manifest, prompts), encoding="utf-8")
        extra = {file: file_entry(folder / file) for file in (PREVIEW, GOLDEN, CARD)}
        manifest = manifest.model_copy(update={"files": {**manifest.files, **extra}})
        write_manifest(folder, manifest)
    return manifest


def write_graph(path: Path, network: Network, *, precision: Precision, tolerance: float, opset: int) -> GraphEntry:
    """Writes the graph of a network to `path`, compared with torch: in float32, and in float16 where that is asked."""
    model = make_graph(network, opset=opset)
    save_graph(model, path)
    entry = compare(network, path, name=path.name, tolerance=tolerance)
    if precision != "fp32":
        (to_half if precision == "fp16" else weights_to_half)(model)
        save_graph(model, path)
        tried = serialized(rounded_as_on_gpu(model)) if precision == "fp16" else path
        half = compare(network, tried, name=path.name, tolerance=None)
        entry = entry.model_copy(update={"fp16_max_abs_difference": half.max_abs_difference})
    return entry
