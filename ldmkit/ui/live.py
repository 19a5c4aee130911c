"""The parts of the page that are HTML of our own. Every text in them may come from a stranger, and is escaped."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from ldmkit.ui.drawing import Progress

LABELS = {
    "prompt": "Prompt",
    "negative": "Negative prompt",
    "seed": "Seed",
    "steps": "Steps",
    "guidance": "Guidance",
    "sampler": "Sampler",
    "size": "Size",
    "bundle": "Bundle",
    "provider": "Drawn on",
}
"""what is shown of a picture's metadata, in this order"""


def live_html(progress: Progress | None = None, *, notes: Sequence[str] = ()) -> str:
    """Progress and previews of the pictures in work, or the notes of a drawing that ended."""
    if progress is None:
        return "".join(f'<p class="note" role="status">{escape(note)}</p>' for note in notes)
    if progress.ahead:
        others = "1 drawing is" if progress.ahead == 1 else f"{progress.ahead} drawings are"
        return f'<div class="work"><p class="note" role="status">Waiting: {others} before this one.</p></div>'
    if progress.total:
        bar = f'<progress aria-label="Drawing" value="{progress.done}" max="{progress.total}"></progress>'
        percent = f"{100 * progress.done // progress.total} %"
    else:
        bar, percent = '<progress aria-label="Opening the bundle"></progress>', "…"
    tiles = "".join(f'<img alt="preview" src="{_data_uri(preview)}">' for preview in progress.previews)
    return (
        f'<div class="work"><div class="bar">{bar}<span>{percent}</span></div>'
        + (f'<div class="tiles">{tiles}</div>' if tiles else "")
        + "</div>"
    )


def settings_html(settings: Mapping[str, str]) -> str:
    """The settings behind a picture."""
    rows = "".join(
        f"<dt>{label}</dt><dd>{escape(settings[key]) or '<em>none</em>'}</dd>"
        for key, label in LABELS.items()
        if key in settings
    )
    return f"<dl>{rows}</dl>"


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
