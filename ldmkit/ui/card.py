"""The bundle's card as HTML: written by a stranger, so its markup is text, and it loads nothing from elsewhere."""

import base64

from markdown_it import MarkdownIt

from ldmkit.errors import LdmkitError
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.manifest import CARD, PREVIEW

MAX_CARD_BYTES = 256 << 10
MAX_PREVIEW_BYTES = 4 << 20


def card_html(bundle: Bundle) -> str:
    """README.md of the bundle; of pictures only its preview.png, inside the page. Says so where there is none.

    Raises LdmkitError where a file of the manifest does not match its hash.
    """
    if CARD not in bundle.manifest.files:
        return "<p>This bundle has no card.</p>"
    if bundle.manifest.files[CARD].size > MAX_CARD_BYTES:
        raise LdmkitError(f"{bundle.folder / CARD} is larger than {MAX_CARD_BYTES >> 10} KiB.")
    text = bundle.read(CARD).decode(errors="replace")
    # HTML is shown as it is written, and links other than http, https and mailto are left as text.
    markdown = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable("table")
    tokens = markdown.parse(text)
    preview = _preview(bundle)
    for token in tokens:
        for child in token.children or []:
            if child.type == "image":
                if preview and child.attrs["src"] == PREVIEW:
                    child.attrs["src"] = preview
                else:
                    child.type = "text"
            elif child.type == "link_open":
                child.attrs |= {"target": "_blank", "rel": "noopener noreferrer nofollow"}
    html: str = markdown.renderer.render(tokens, markdown.options, {})
    return html


def _preview(bundle: Bundle) -> str:
    """preview.png as a data URI; empty where the bundle has none of a reasonable size."""
    entry = bundle.manifest.files.get(PREVIEW)
    if entry is None or entry.size > MAX_PREVIEW_BYTES:
        return ""
    return "data:image/png;base64," + base64.b64encode(bundle.read(PREVIEW)).decode()
