"""The parts of the page that are HTML of our own. Every text in them may come from a stranger, and is escaped."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from markdown_it import MarkdownIt
from PIL import Image

from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.manifest import CARD, PREVIEW
from ldmkit.ui.drawing import Progress

MAX_CARD_BYTES = 256 << 10
MAX_PREVIEW_BYTES = 4 << 20
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


def header_html(bundle: Bundle) -> str:
    """The bundle's name, and what it draws."""
    width, height = bundle.manifest.size
    return f"<h1>{escape(bundle.manifest.name)}</h1><p>{width} x {height} pixels, drawn on this machine</p>"


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
    tiles = "".join(f'<img alt="preview" src="{_preview_uri(preview)}">' for preview in progress.previews)
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


def card_html(bundle: Bundle) -> str:
    """README.md of the bundle; of pictures only its preview.png, inside the page. Says so where there is none.

    A stranger wrote it, so its markup is text, and it loads nothing from elsewhere. Raises LdmkitError where a file of
    the manifest does not match its hash.
    """
    files = bundle.manifest.files
    if CARD not in files:
        return "<p>This bundle has no card.</p>"
    if files[CARD].size > MAX_CARD_BYTES:
        raise LdmkitError(f"{bundle.folder / CARD} is larger than {MAX_CARD_BYTES >> 10} KiB")
    shows_preview = PREVIEW in files and files[PREVIEW].size <= MAX_PREVIEW_BYTES
    # HTML is shown as it is written, and links other than http, https and mailto are left as text.
    markdown = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table")
    tokens = markdown.parse(bundle.read(CARD).decode(errors="replace"))
    for child in (child for token in tokens for child in token.children or []):
        if child.type == "image" and shows_preview and child.attrs["src"] == PREVIEW:
            child.attrs["src"] = _png_uri(bundle.read(PREVIEW))
        elif child.type == "image":
            child.type = "text"
        elif child.type == "link_open":
            child.attrs |= {"target": "_blank", "rel": "noopener noreferrer nofollow"}
    html: str = markdown.renderer.render(tokens, markdown.options, {})
    return html


def _preview_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return _png_uri(buffer.getvalue())


def _png_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
