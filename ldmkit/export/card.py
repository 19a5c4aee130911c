"""The model card of a bundle: its README.md."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ldmkit.report import printable
from ldmkit.runtime.manifest import GOLDEN, PREVIEW, UNET, UNET_T2I, VAE_ENCODER, GraphEntry, Manifest

PRECISIONS = {
    "fp32": "weights and arithmetic in float32",
    "fp16-weights": "weights stored in float16, arithmetic in float32",
    "fp16": "float16, but for norms, softmax and the timestep's embedding",
}


def model_card(manifest: Manifest, preview_prompts: Sequence[str] | None) -> str:
    """Markdown: what the model is, how to use it, its figures, its recipe and its limits."""
    latent, defaults, schedule = manifest.latent, manifest.defaults, manifest.schedule
    draws = {UNET_T2I: "from a prompt", UNET: "without one"}
    modes = " and ".join(words for file, words in draws.items() if file in manifest.files)
    # Captions are others' words: what is pasted into a shell or into Python has them as one text, on one line.
    example = _one_line(preview_prompts[0]) if preview_prompts else ""
    argument = f"{json.dumps(example, ensure_ascii=False)}, " if example else ""
    pasted = f" {'-- ' if example.startswith('-') else ''}{shlex.quote(example)}" if example else ""
    text = f"""# {manifest.name}

A latent diffusion model that draws pictures of {manifest.size[0]}x{manifest.size[1]} pixels {modes},
exported by ldmkit on {manifest.created:%Y-%m-%d}. It runs on onnxruntime, without PyTorch.

![pictures drawn by this bundle]({PREVIEW})

"""
    if preview_prompts:
        text += "The preview's prompts, row by row, seeds from 0:\n\n"
        text += "".join(f"{k}. {escaped(prompt)}\n" for k, prompt in enumerate(preview_prompts, 1)) + "\n"
    text += f"""## Use

    ldmkit generate --bundle PATH_OF_THIS_FOLDER{pasted}

or in Python

    from ldmkit.runtime.bundle import Bundle
    Bundle.load("PATH_OF_THIS_FOLDER").generate({argument}seed=0)[0].save("picture.png")

Unless told otherwise it takes {defaults.steps} steps of the sampler `{defaults.sampler}` at guidance scale
{defaults.guidance_scale:g}.

## Figures

"""
    half = manifest.precision != "fp32"
    text += f"| graph | bytes | largest difference from torch{', in float32' if half else ''} |"
    text += " as stored here |" if half else ""
    text += " batches and sizes compared |\n|---|---|---|" + ("---|" if half else "") + "---|\n"
    for name, graph in manifest.graphs.items():
        text += f"| `{name}` | {manifest.files[name].size:,} | {graph.max_abs_difference:.1e} |"
        text += f" {graph.fp16_max_abs_difference:.1e} |" if graph.fp16_max_abs_difference is not None else ""
        text += f" {_compared(graph)} |\n"
    text += "\n| pictures by | steps | guidance | PSNR against torch in float32 | largest difference of a colour |\n"
    text += "|---|---|---|---|---|\n"
    for name, found in manifest.trajectories.items():
        text += (
            f"| `{name}` | {found.steps} of `{found.sampler}` | {found.guidance_scale:g} | {found.psnr:.1f} dB, "
            f"the least of {len(found.seeds)} | {found.max_difference} of 255 |\n"
        )
    rgb = f"; {100 * latent.rgb.r2:.0f}% of a preview's colours follow from them" if latent.rgb else ""
    sizes = f", or any multiples of {latent.multiple}" if latent.multiple else ""
    trained = ", ".join(f"{width}x{height}" for width, height in manifest.sizes)
    text += f"""
`ldmkit export verify PATH_OF_THIS_FOLDER` repeats what needs no torch, and compares the pictures of `{GOLDEN}`.

- precision `{manifest.precision}`: {PRECISIONS[manifest.precision]}
- latents: {latent.channels} x {latent.height} x {latent.width}{sizes}, normalised per channel; the decoder graph
  undoes it{rgb}
- prediction `{manifest.prediction}`, schedule `{schedule.name}` over {schedule.num_timesteps} timesteps
"""
    if trained:
        text += f"- trained on pictures of {trained} (width x height)\n"
    if VAE_ENCODER in manifest.files:
        text += f"- `{VAE_ENCODER}` turns pictures into latents: it draws from a picture as well\n"
    if manifest.text is not None:
        text += f"- prompts are cut at {manifest.text.max_tokens} tokens\n"
    text += "\n## How it was made\n\n"
    text += _listing(manifest.notes) or "- nothing was noted\n"
    text += f"- fingerprint: {manifest.fingerprint}\n\nThe recipe:\n\n" + _listing(manifest.recipe)
    text += """
## Limits

It draws what its training pictures showed, in the words that their captions used: other subjects and other wordings
come out as the nearest thing that it knows. Whoever shares its pictures answers for the rights in the pictures that
it was trained on.
"""
    return text


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def escaped(text: str) -> str:
    """The text as CommonMark and GitHub's Markdown show it letter by letter: no HTML, link, picture, table or list."""
    marked = re.sub(r"([\\`*<>&|~$@]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))", r"\\\1", _one_line(text))
    marked = re.sub(r"(?i)\b(https?|ftp)(?=://)|\bwww(?=\.)", r"\g<0>\\", marked)  # which become links by themselves
    return re.sub(r"^(?=[-+=#\[])|^\d+(?=[.)])", r"\g<0>\\", marked)


def _compared(graph: GraphEntry) -> str:
    """Batch sizes, each with its height and width where it has one."""
    if not graph.sizes:
        return ", ".join(map(str, graph.batch_sizes))
    pairs = zip(graph.batch_sizes, graph.sizes, strict=True)
    return ", ".join(f"{batch} of {height}x{width}" for batch, (height, width) in pairs)


def _listing(table: Mapping[str, Any], depth: int = 0) -> str:
    """Nested tables as a nested list."""
    lines = ""
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += f"{'  ' * depth}- {escaped(key)}:\n{_listing(value, depth + 1)}"
        else:
            lines += f"{'  ' * depth}- {escaped(f'{key}: {value}')}\n"
    return lines
