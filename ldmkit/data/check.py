"""What is wrong with a set of pictures, by kind: what cannot be used, looks alike, is blank, blurred or small.

Thresholds are for a person's eye: nothing is left out by them unless the user says so.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np

from ldmkit.data.looks import BLANK, first_alike
from ldmkit.data.pictures import SAME_CONTENT, PictureIndex
from ldmkit.data.rows import Entry
from ldmkit.recipe.data import Data
from ldmkit.report import printable

BLURRED = 50.0
"""grey levels squared, the sharpness below which a picture is called blurred; the least of 1,500 photos of cats at 64
pixels is 580, of one blurred by 1.5 pixels it is below 50"""
CUT = 0.4
"""share of its pixels that a picture may lose by the crop before it is named"""
SQUARE = 0.15
"""mean share cut away up to which a square crop is what one proposes"""
RATIOS = {"1:1": 1.0, "5:4": 5 / 4, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "2:1": 2.0}
"""landscape; each stands for what is nearest to it, portrait ones the other way round"""

TITLES = {
    "unusable": "cannot be used",
    "lossy": "used, but not as they are",
    "copies": "copies, byte by byte",
    "near_duplicates": "near-duplicates of another picture",
    "straddling": "training pictures with a near-duplicate held out",
    "blank": "near-blank",
    "blurred": "blurred",
    "small": "smaller than the size they are trained at",
    "cropped": f"lose more than {CUT:.0%} by the crop",
    "squashed": f"distorted by more than {CUT:.0%}",
    "names": "names that clash",
    "caption_unreadable": "captions that cannot be read",
    "caption_missing": "without a caption",
    "caption_orphaned": "captions that no picture takes",
    "caption_repeated": "captions that several pictures share",
    "caption_cut": "captions too long for the text encoder",
    "caption_boilerplate": "captions that begin alike",
}
"""kind of finding -> what a person reads, in the order of reading"""
DISPENSABLE = ("copies", "near_duplicates", "blank", "blurred", "small")
"""kinds whose pictures are proposed for `data.exclude`"""


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know."""

    file: str
    """key of the picture, or path of another file"""
    reason: str
    other: str = ""
    """key of another picture that it concerns"""
    score: float = 0.0
    """how bad it is among its kind, the most the worst"""


@dataclass
class Check:
    """What was found of a set."""

    index: PictureIndex
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    """by kind, the worst first; kinds without any are left out"""
    facts: list[str] = field(default_factory=list)
    """lines on the whole set"""
    ratios: dict[str, int] = field(default_factory=dict)
    """aspect ratio -> pictures"""
    cut: float = 0.0
    """mean share of the pixels that the crop cuts away"""
    proposal: str = ""
    """what shape to train at"""

    def add(self, kind: str, found: Iterable[Finding]) -> None:
        assert kind in TITLES, kind
        rows = sorted(found, key=lambda finding: (-finding.score, finding.file))
        if rows:
            self.findings[kind] = rows

    def dispensable(self) -> dict[str, str]:
        """Why, by key, of the pictures that one could do without."""
        rows = [(finding.file, finding.reason) for kind in DISPENSABLE for finding in self.findings.get(kind, ())]
        return dict(reversed(rows))  # the first reason counts

    def lines(self, *, every: bool = False) -> list[str]:
        """For a person: of each kind how many, grouped by reason; `every`: each with its reason."""
        lines = []
        for kind, title in TITLES.items():
            if not (rows := self.findings.get(kind)):
                continue
            lines.append(f"{title}: {len(rows)}")
            if every:
                lines += [f"  {printable(row.file)}: {printable(row.reason)}" for row in rows]
                continue
            groups: defaultdict[str, list[Finding]] = defaultdict(list)
            for row in rows:
                groups[_form(row)].append(row)
            for own in sorted(groups.values(), key=len, reverse=True)[:SHOWN]:
                lines.append(_group_line(own))
            if (rest := len(groups) - SHOWN) > 0:
                lines.append(f"  and {rest} other reason{'s' * (rest > 1)}")
        return lines


SHOWN = 10
"""reasons of a kind that a summary has"""
NAMED = 3
"""files that a line of a summary names"""
MOST_PAIRS = 2 * 10**8
"""of held-out and training pictures that are compared before a run: three seconds on one core"""


def check_pictures(index: PictureIndex, data: Data, seed: int) -> Check:
    """Every finding but those of captions; `index` has looks."""
    check = Check(index)
    check.add("unusable", (Finding(key, reason) for key, reason in index.rejected))
    noted = index.noted()
    check.add("lossy", (Finding(key, text) for key, text, other in noted if not other))
    for kind, copies in (("copies", True), ("names", False)):
        pairs = [row for row in noted if row[2] and (row[1] == SAME_CONTENT) == copies]
        check.add(kind, (Finding(key, text.format(printable(other)), other) for key, text, other in pairs))
    if len(index):
        _alike(check, data, seed)
        _seen(check, data)
        _shapes(check, data)
    return check


def _alike(check: Check, data: Data, seed: int) -> None:
    index = check.index
    groups: defaultdict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in index.entries:
        if (first := index.alike.get(entry.sha256)) is not None:
            groups[first].setdefault(entry.sha256, entry)
    several = [list(own.values()) for own in groups.values() if len(own) > 1]
    found = []
    for own in several:
        best = max(own, key=lambda entry: entry.width * entry.height)
        found += [
            Finding(e.key, f"looks like {printable(best.key)}, {best.width}x{best.height}", best.key)
            for e in own
            if e is not best
        ]
    check.add("near_duplicates", found)
    held = {index.entries[i].sha256 for i in index.split(data.held_out, seed, together=data.group_duplicates)[1]}
    straddling = []
    for own in several:
        out = [entry for entry in own if entry.sha256 in held]
        straddling += [
            Finding(e.key, f"looks like {printable(out[0].key)}, which is held out", out[0].key)
            for e in own
            if out and e.sha256 not in held
        ]
    check.add("straddling", straddling)
    if straddling:
        check.facts.append("data.group_duplicates = true keeps near-duplicates on one side of the held-out split")


def held_out_copies(index: PictureIndex, data: Data, seed: int) -> list[str]:
    """A line where held-out pictures look like one that trains; none where nothing does, or nobody looked at them.

    Of very many held-out pictures an even sample is compared. Drawn ones are left alone: each is a draw of its own, and
    what looks alike in greys is of another colour.
    """
    if data.group_duplicates or data.source == "toy-cats":
        return []
    looks, names = index.entries.looks, index.entries.names
    if not len(looks):
        return []
    clear = looks["there"] & (looks["contrast"] >= BLANK)
    train, held = ((at := np.array(side, dtype=np.int64))[clear[at]] for side in index.split(data.held_out, seed))
    _, once = np.unique(index.entries.sha256[held], axis=0, return_index=True)
    held = held[np.sort(once)]
    compared = held[:: 1 + len(held) * len(train) // MOST_PAIRS]
    found = first_alike(looks["phash"][compared], looks["phash"][train])
    pairs = [
        f"{printable(names[i])} like {printable(names[train[like]])}"
        for i, like in zip(compared, found, strict=True)
        if like >= 0
    ]
    if not pairs:
        return []
    named = ", ".join(pairs[:NAMED]) + ", ..." * (len(pairs) > NAMED)
    of = f"{len(pairs)} of {len(compared)} held-out pictures{' compared' * (len(compared) < len(held))}"
    return [
        f"{of} look like one that trains, so that held-out figures are better than they should be: {named}; "
        "data.group_duplicates = true keeps such pictures on one side, and data.exclude with the list of "
        "`ldmkit data check` leaves them out; with either a run which exists begins anew"
    ]


def _seen(check: Check, data: Data) -> None:
    looks = [(entry, entry.look) for entry in check.index.entries if entry.look is not None]
    check.add(
        "blank",
        (
            Finding(e.key, f"its greys span {look.contrast} of 255 levels", score=-look.contrast)
            for e, look in looks
            if look.contrast < BLANK
        ),
    )
    sharp = [(e, look.sharpness_at(min(data.shapes[0]))) for e, look in looks if look.contrast >= BLANK]
    check.add(
        "blurred",
        (
            Finding(e.key, f"variance of its Laplacian {sharpness:.0f}, below {BLURRED:.0f}", score=-sharpness)
            for e, sharpness in sharp
            if sharpness is not None and sharpness < BLURRED
        ),
    )


def _shapes(check: Check, data: Data) -> None:
    """What becomes of the shapes: enlarged, cut away, distorted; and what else one could train at."""
    small, cut = [], []
    for entry in check.index.entries:
        width, height = data.shapes[data.bucket(entry.width, entry.height)]
        times = max(width / entry.width, height / entry.height)
        if times > 1:
            reason = f"{entry.width}x{entry.height} is enlarged {times:.1f} times"
            small.append(Finding(entry.key, reason, score=times))
        ratio = entry.width / entry.height / (width / height)
        lost = 1 - min(ratio, 1 / ratio)
        if lost > CUT:
            how = "distorted by" if data.crop == "squash" else "cut away:"
            cut.append(Finding(entry.key, f"{entry.width}x{entry.height}, {how} {lost:.0%}", score=lost))
        check.cut += lost / len(check.index)
    check.add("small", small)
    check.add("squashed" if data.crop == "squash" else "cropped", cut)
    check.ratios = dict(Counter(_ratio(entry) for entry in check.index.entries).most_common())
    verb = "distorted by" if data.crop == "squash" else "cut away:"
    ratios = ", ".join(f"{name} ({number})" for name, number in list(check.ratios.items())[:5])
    sizes = ", ".join(f"{width}x{height}" for width, height in data.shapes)
    check.proposal = _proposal(check, data)
    check.facts.append(f"aspect ratios: {ratios}; {verb} {check.cut:.0%} at {sizes}; {check.proposal}")


def _ratio(entry: Entry) -> str:
    long, short = max(entry.width, entry.height), min(entry.width, entry.height)
    name = min(RATIOS, key=lambda name: abs(log(long / short / RATIOS[name])))
    return name if entry.width >= entry.height else ":".join(reversed(name.split(":")))


def _proposal(check: Check, data: Data) -> str:
    """The shape as it is, or that of most pictures at as many pixels, in multiples of 8, or several."""
    name, number = next(iter(check.ratios.items()))
    if check.cut <= SQUARE:
        return "that fits"
    across, down = map(int, name.split(":"))
    width, height = data.shapes[0]
    scale = (width * height / (across * down)) ** 0.5
    shape = tuple(max(8, round(side * scale / 8) * 8) for side in (across, down))
    if number < len(check.index) / 2 or shape in data.shapes:
        return "that loses much, and no one shape fits most: data.buckets would"
    size = shape[0] if shape[0] == shape[1] else list(shape)
    return f"data.size = {size} would fit {number} of them"


def _form(finding: Finding) -> str:
    """The same for all reasons that differ in numbers and in names of others."""
    text = finding.reason.replace(printable(finding.other), "") if finding.other else finding.reason
    return re.sub(r"\d+([.,]\d+)*", "N", text)


def _group_line(own: Sequence[Finding]) -> str:
    names = ", ".join(printable(finding.file) for finding in own[:NAMED])
    more = f" and {len(own) - NAMED} more" if len(own) > NAMED else ""
    one = "" if len({finding.reason for finding in own}) == 1 else " the first"
    return f"  {names}{more}:{one} {printable(own[0].reason)}"


def as_json(check: Check) -> Mapping[str, object]:
    """What `--json` prints of the findings."""
    return {
        "counts": {kind: len(rows) for kind, rows in check.findings.items()},
        "findings": {
            kind: [
                {"file": row.file, "reason": row.reason} | ({"other": row.other} if row.other else {}) for row in rows
            ]
            for kind, rows in check.findings.items()
        },
        "facts": check.facts,
        "aspect_ratios": check.ratios,
        "cut_away": round(check.cut, 4),
        "proposal": check.proposal,
    }
