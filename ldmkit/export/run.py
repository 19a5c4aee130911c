"""Stage `export`: a finished run -> the bundle in `exports/<recipe>/`."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import ldmkit
from ldmkit.caches.sets import TextSet
from ldmkit.export.bundle import NUM_PREVIEW, export_bundle
from ldmkit.export.model import model_of
from ldmkit.export.preview_map import fit_latent_rgb
from ldmkit.run.files import check, read_record
from ldmkit.run.first_weights import kept_starts
from ldmkit.run.metrics import read_metrics
from ldmkit.run.networks import load_networks
from ldmkit.run.parts import trained_parts
from ldmkit.run.workspace import Workspace


def export_run(workspace: Workspace) -> dict[str, Any]:
    """Loads the run's trained weights, averaged where there is an average, and writes the bundle."""
    recipe, part = workspace.recipe, workspace.parts["bundle"]
    assert part.bundle is not None
    networks = load_networks(recipe, workspace.registry, workspace.run_dir, checkpoint=workspace.checkpoint)
    for name, step in networks.steps.items():
        workspace.reporter.line(f"export: {name} of step {step}")
    manifest = export_bundle(
        part.bundle,
        model_of(recipe, networks, rgb=fit_latent_rgb(workspace)),
        recipe.export,
        recipe=recipe.published(),
        fingerprint=part.fingerprint,
        notes={
            **_notes(workspace, networks.steps),
            **({"checkpoints": dict(networks.steps)} if networks.steps else {}),
        },
        preview_prompts=_preview_prompts(workspace),
        progress=workspace.reporter.line,
    )
    return {
        "bundle": str(part.bundle),
        **{name: graph.max_abs_difference for name, graph in manifest.graphs.items()},
        **{f"{Path(name).stem}_psnr": found.psnr for name, found in manifest.trajectories.items()},
    }


def _preview_prompts(workspace: Workspace) -> list[str]:
    """Captions of held-out pictures, or of any where none is held out; none where no picture has a caption."""
    if workspace.recipe.t2i is None:
        return []
    texts = TextSet(workspace.folder("text"))
    for positions in reversed(workspace.split()):
        numbers = texts.index[positions]
        if (numbers > 0).any():
            return [texts.captions[number] for number in numbers[numbers > 0][:NUM_PREVIEW]]
    return []


def _notes(workspace: Workspace, steps: Mapping[str, int]) -> dict[str, Any]:
    """How the run was made: seconds and last held-out metrics of each stage, versions, the machine's kind.

    Of a part in `steps`, which need not be finished, as they were at that step.
    """
    stages: dict[str, dict[str, Any]] = {}
    starts = kept_starts(workspace.run_dir)
    for name in trained_parts():
        if name not in workspace.parts:
            continue
        record = (read_record(workspace.folder(name)) or {}) if name in steps else workspace.parts[name].record()
        if name == "vae" and workspace.recipe.vae.pretrained:
            stages[name] = {"pretrained": workspace.recipe.published()["vae"]["pretrained"]}
            if not workspace.recipe.vae.tune_decoder_steps:
                continue
        # The log's seconds go on from those before an interruption; the record's are of the last session alone.
        log = workspace.folder(name) / "metrics.jsonl"
        check(log)
        last: dict[str, Any] = {}
        for row in read_metrics(log):
            if name not in steps or row["step"] <= steps[name]:
                last |= row
        held_out = {key: value for key, value in last.items() if key.startswith("held_out")}
        stages[name] = stages.get(name, {}) | {
            "seconds": last.get("seconds", 0.0),
            "held_out": held_out if name in steps else record["facts"],
        }
        if history := record.get("history"):
            stages[name]["history"] = history
        if start := starts.get(name):
            stages[name]["started_from"] = {"name": start.name, "sha256": start.sha256}
    return {
        "num_pictures": len(workspace.index.entries),
        "stages": stages,
        "versions": {"ldmkit": ldmkit.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
    }
