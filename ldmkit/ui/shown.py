"""What the page says of a bundle."""

from dataclasses import dataclass
from html import escape

from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.manifest import Defaults
from ldmkit.ui.asked import sides_of
from ldmkit.ui.card import card_html

NUM_EXAMPLES = 4


@dataclass(frozen=True)
class Shown:
    """Of one bundle; texts that its maker wrote are escaped."""

    name: str
    header: str
    """HTML"""
    card: str
    """HTML"""
    draws_text: bool
    examples: tuple[str, ...]
    """NUM_EXAMPLES prompts, "" where there are fewer"""
    defaults: Defaults
    picture_size: int
    """pixels, width and height, unless asked for otherwise"""
    sides: range
    """that may be asked for"""


def shown_of(bundle: Bundle) -> Shown:
    """Raises LdmkitError where a file of the card does not match its hash."""
    manifest = bundle.manifest
    examples = manifest.examples[:NUM_EXAMPLES] if bundle.draws_text else ()
    size = f"{manifest.picture_size} x {manifest.picture_size} pixels"
    return Shown(
        name=manifest.name,
        header=f"<h1>{escape(manifest.name)}</h1><p>{size}, drawn on this machine</p>",
        card=card_html(bundle),
        draws_text=bundle.draws_text,
        examples=(*examples, *[""] * (NUM_EXAMPLES - len(examples))),
        defaults=manifest.defaults,
        picture_size=manifest.picture_size,
        sides=sides_of(manifest),
    )
