"""One page on a set of pictures that needs no network: the worst of each kind, and how pictures are cropped."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path

from PIL import Image

from ldmkit.atomic import write_atomic
from ldmkit.data.check import TITLES, Check, Finding
from ldmkit.data.decode import FORMATS, MAX_BYTES, load_bytes, prepare, turn_of
from ldmkit.data.sources import Source
from ldmkit.errors import LdmkitError
from ldmkit.recipe.data import Data
from ldmkit.report import printable

WORST = 8
"""findings of a kind that are shown"""
SHEET = 18
"""pictures that the contact sheet shows"""
AS_CROPPED = ("cropped", "squashed")
"""kinds whose pictures are shown with what the crop does to them"""
THUMB = 144
"""pixels, the longer side of a thumbnail"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --soft: #888; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem; }}
ul {{ padding-left: 1.2rem; }}
table {{ border-collapse: collapse; }}
td {{ padding: .1rem .8rem .1rem 0; }}
td:first-child {{ text-align: right; font-variant-numeric: tabular-nums; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem; }}
.sheet {{ display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-end; }}
figure {{ margin: 0; border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; }}
.sheet figure {{ border: 0; padding: 0; }}
figure div {{ display: flex; gap: .4rem; align-items: flex-end; min-height: 1rem; }}
figcaption {{ margin-top: .4rem; font-size: .85rem; overflow-wrap: anywhere; }}
small, .more {{ color: var(--soft); }}
</style>
</head>
<body>
<h1>{title}</h1>
<ul>{facts}</ul>
{body}
</body>
</html>
"""


def write_page(
    file: Path,
    check: Check,
    data: Data,
    captions: Mapping[str, str],
    progress: Callable[[int, int], None],
) -> None:
    """Writes the page; whatever a name or a caption holds is text there. `progress(done, total)` counts pictures."""
    good = {entry.key for entry in check.index.entries}
    shown = {kind: rows[:WORST] for kind, rows in check.findings.items()}
    wanted = {
        (key, kind in AS_CROPPED)
        for kind, rows in shown.items()
        for row in rows
        for key in (row.file, row.other)
        if key in good
    }
    sheet = [entry.key for entry in check.index.entries][:: -(-len(good) // SHEET) or 1]
    drawn: dict[tuple[str, bool], str] = {}
    tasks = sorted(wanted | {(key, True) for key in sheet})
    files = check.index.files
    with ThreadPoolExecutor(4) as pool:
        images = pool.map(lambda task: _picture(files, task[0], task[1], data), tasks)
        for task, image in zip(tasks, images, strict=True):
            drawn[task] = image
            progress(len(drawn), len(tasks))
    title = f"{len(good)} pictures in {check.index.folder}"
    counts = "".join(
        f'<tr><td>{len(check.findings[kind])}</td><td><a href="#{kind}">{words}</a></td></tr>'
        for kind, words in TITLES.items()
        if kind in shown
    )
    kinds = "".join(_kind(check, kind, shown[kind], drawn, captions) for kind in TITLES if kind in shown)
    write_html(file, title, check.facts, f"<table>{counts}</table>\n{kinds}\n{_sheet(sheet, drawn, data)}")


def write_html(file: Path, title: str, facts: Iterable[str], body: str) -> None:
    """Writes a page that loads nothing; `facts` are text, `body` is HTML."""
    listed = "".join(f"<li>{escaped(fact)}</li>" for fact in facts)
    write_atomic(file, _PAGE.format(title=escaped(title), facts=listed, body=body).encode())


def _kind(
    check: Check,
    kind: str,
    rows: list[Finding],
    drawn: Mapping[tuple[str, bool], str],
    captions: Mapping[str, str],
) -> str:
    figures = []
    for row in rows:
        pictures = "".join(drawn.get((key, kind in AS_CROPPED), "") for key in (row.file, row.other))
        caption = f"<br>“{escaped(captions[row.file])}”" if kind.startswith("caption_") and row.file in captions else ""
        words = f"<b>{escaped(row.file)}</b><br>{escaped(row.reason)}{caption}"
        figures.append(f"<figure><div>{pictures}</div><figcaption>{words}</figcaption></figure>")
    number = len(check.findings[kind])
    more = f'<p class="more">and {number - len(rows)} more</p>' if number > len(rows) else ""
    heading = f'<h2 id="{kind}">{TITLES[kind]}: {number}</h2>'
    return f'{heading}\n<div class="grid">{"".join(figures)}</div>{more}\n'


def _sheet(keys: list[str], drawn: Mapping[tuple[str, bool], str], data: Data) -> str:
    if not keys:
        return ""
    how = "what is cut away is pale" if data.crop == "center" else "as they are distorted"
    figures = "".join(
        f"<figure><div>{drawn[key, True]}</div>"
        f"<figcaption><small>{escaped(Path(key).name[:24])}</small></figcaption></figure>"
        for key in keys
    )
    return f'<h2 id="crops">Crops, every so many pictures: {how}</h2>\n<div class="sheet">{figures}</div>\n'


def _picture(files: Source, key: str, cropped: bool, data: Data) -> str:
    """An `img` that holds its picture; nothing where the file is gone by now."""
    try:
        image = _small(files.read(key, MAX_BYTES), key)
    except (LdmkitError, OSError):
        return ""
    width, height = data.shapes[data.bucket(*image.size)]
    if cropped and data.crop == "squash":
        size = (max(1, THUMB * width // max(width, height)), max(1, THUMB * height // max(width, height)))
        image = Image.fromarray(prepare(image, size, "squash"))
    elif cropped:
        scale = min(image.width / width, image.height / height)
        across, down = round(width * scale), round(height * scale)
        left, top = (image.width - across) // 2, (image.height - down) // 2
        pale = Image.blend(image, Image.new("RGB", image.size, "white"), 0.75)
        pale.paste(image.crop((left, top, left + across, top + down)), (left, top))
        image = pale
    return img_of(image)


def img_of(image: Image.Image, side: int = THUMB) -> str:
    """An `img` that holds this picture, its longer side of so many pixels."""
    scale = side / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    source = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{source}" width="{width}" height="{height}" alt="">'


def _small(data: bytes, name: str) -> Image.Image:
    """Upright; a JPEG is reduced while it is decoded, since nobody judges its colours by a thumbnail."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
            return load_bytes(data, name)
        image.draft(image.mode, (2 * THUMB, 2 * THUMB))
        turn, rgb = turn_of(image, set()), image.convert("RGB")
        return rgb if turn is None else rgb.transpose(turn)


def escaped(text: str) -> str:
    """As HTML shows it, control characters as escapes."""
    return escape(printable(text))
