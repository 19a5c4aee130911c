"""What a run would say after hours, said before its first part is made. No torch."""

from collections.abc import Collection

from ldmkit.components.protocols import TextEncoder
from ldmkit.data.captions import read_captions, require_captions
from ldmkit.recipe.training import Training
from ldmkit.run.dataset import require_room
from ldmkit.run.workspace import Workspace


def check_ahead(workspace: Workspace, made: Collection[str], num_processes: int, *, any_share: bool) -> None:
    """Raises LdmkitError for captions that are missing, batches and precisions that cannot be.

    `made`: the parts that will be; `any_share`: whether any share of the pictures may lack a caption.
    """
    recipe, registry, parts = workspace.recipe, workspace.registry, workspace.parts
    if "text" in made and parts["captions"].status().state == "done":
        share = None if recipe.caption.missing == "error" else 1.0 if any_share else recipe.caption.max_missing
        captions = read_captions(parts["captions"].folder / "captions.jsonl")
        require_captions(captions, list(workspace.index.entries.names), share)
    if {"vae", "text"} <= set(made):
        encoder: TextEncoder = registry.build("text_encoder", recipe.text.table(), where="[text]")
        if not encoder.trainable:  # files that have to be there, or to be fetched
            encoder.load_module(encoder.build_tokenizer([]))
    if "latents" in made and not recipe.vae.pretrained:
        require_room(recipe, workspace.index, workspace.run_dir)
    for name in made:
        section = getattr(recipe, name, None)
        if isinstance(section, Training):
            section.check_split(name, num_processes)
            if section.precision == "fp16":
                from ldmkit.training.device import resolve_precision

                resolve_precision(section.precision)
