"""Whether `palette` calls ginger cats orange and brown ones brown, on photographs named by eye.

python -m benchmarks.quality.palette_photos DIR

DIR holds the cats of AFHQ (Choi et al. 2020, research use) under their own names. Named were those that are plainly the
one or the other of two random samples: of 200 that were called orange, brown or beige before, by which the thresholds
were chosen, and of 60 called orange and 60 called brown since.
"""

from collections.abc import Iterator
from pathlib import Path

from ldmkit_palette import read
from PIL import Image

from benchmarks.command import print_table, run
from ldmkit import LdmkitError

PREFIXES = {"f": "flickr_cat_", "p": "pixabay_cat_"}
TAKEN_FOR = {"orange": ("orange", "beige"), "brown": ("brown",)}
"""beige is a pale orange"""
CHOSEN_BY = {
    "orange": """
f000047 f000215 f000355 f000551 f000622 f000809 p000225 p000237 p000258 p000264 p000274 p000312 p000323 p000333
p000470 p000478 p000502 p000538 p001028 p001119 p001322 p001366 p001413 p001422 p001428 p001590 p001671 p001732
p001749 p001897 p002123 p002158 p002423 p002442 p002526 p002539 p002605 p002777 p002813 p002900 p002935 p003001
p003021 p003108 p003319 p003497 p003626 p003661 p003690 p003738 p003816 p003856 p003923 p004085 p004093 p004134
p004168 p004344 p004406 p004498 p004534 p004617 p004691 p004718 p004746 p004818
""",
    "brown": """
f000290 f000428 f000548 f000565 f000580 f000640 f000659 f000675 f000722 f000742 f000767 f000812 p000027 p000157
p000179 p000187 p000194 p000357 p000391 p000455 p000564 p000646 p000672 p000962 p000977 p000994 p001504 p001572
p001668 p001689 p002021 p002076 p002087 p002139 p002150 p002173 p002176 p002194 p002251 p002371 p002417 p002420
p002433 p002545 p002556 p002733 p002786 p002923 p002971 p002977 p002980 p002983 p002988 p003054 p003071 p003195
p003353 p003505 p003824 p003937 p003954 p003976 p003991 p004062 p004116 p004138 p004203 p004214 p004464 p004657
p004705 p004711 p004806
""",
}
HELD_OUT = {
    "orange": """
f000079 f000576 f000604 f000770 p000335 p000351 p000356 p000377 p000602 p000724 p000775 p000796 p000920 p001142
p001250 p001328 p001543 p001598 p001797 p001862 p002257 p002328 p002645 p002649 p002762 p002779 p002815 p002902
p003007 p003060 p003066 p003140 p003274 p003278 p003511 p003547 p003657 p003840 p003932 p004036 p004071 p004112
p004149 p004216 p004274 p004546 p004575 p004710
""",
    "brown": """
f000053 f000132 f000335 f000364 f000778 p000084 p000114 p000596 p000884 p000907 p000950 p001024 p001027 p001048
p001345 p001403 p001483 p001489 p001498 p001629 p001734 p002071 p002337 p002473 p002633 p002836 p003264 p003349
p003526 p003975 p003979 p004025 p004226 p004467 p004740 p004781 p004820
""",
}


def agreement(folder: Path, names: str, color: str) -> tuple[int, int]:
    """How many of these are called so before all, and how many there are."""
    files = [folder / f"{PREFIXES[name[0]]}{name[1:]}.jpg" for name in names.split()]
    if lost := [file for file in files if not file.is_file()]:
        raise LdmkitError(f"{folder}: lacks {len(lost)} of AFHQ's cats, such as {lost[0].name}")
    first = [read(Image.open(file)).subject[0].split()[-1] for file in files]
    return sum(word in TAKEN_FOR[color] for word in first), len(files)


def rows(folder: Path) -> Iterator[tuple[object, ...]]:
    for sample, colors in (("by which it was made", CHOSEN_BY), ("others", HELD_OUT)):
        found = {color: agreement(folder, names, color) for color, names in colors.items()}
        right, total = (sum(counts) for counts in zip(*found.values(), strict=True))
        yield sample, *(f"{right} of {total}" for right, total in found.values()), f"{right / total:.1%}"


def main(folder: Path) -> None:
    print_table(("photographs", "ginger", "brown", "right"), *rows(folder))


if __name__ == "__main__":
    run(main)
