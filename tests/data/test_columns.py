"""Names in one run of bytes are what a list of them is."""

import random

import numpy as np

from ldmkit.data.columns import Names
from ldmkit.data.rows import Rows


def test_names_are_a_list_of_them() -> None:
    draw = random.Random(0)
    every = sorted({"".join(draw.choices("aZ/. ü\udce9\U0001f431", k=draw.randrange(1, 9))) for _ in range(40_000)})
    names = Names.of(every)
    assert list(names) == every
    assert [names[0], names[-1], names[777]] == [every[0], every[-1], every[777]]
    assert len(names) == len(every) == sum(len(part) for part in names.parts())
    assert list(names.prefixed("x.tar/")) == ["x.tar/" + name for name in every]
    chosen = draw.sample(range(len(every)), 5000)
    some = names.take(np.array(chosen))
    assert list(some) == [every[i] for i in chosen]
    assert names.where(some).tolist() == chosen
    places = {every[i]: number for number, i in enumerate(chosen)}
    assert some.where(names).tolist() == [places.get(name, -1) for name in every]
    none = Names.of(())
    assert (list(none), list(none.prefixed("x")), none.where(names).max()) == ([], [], -1)


def test_rows_are_a_list_of_them() -> None:
    rows = []
    for number in range(50):
        row = {"size": 2**40 + number, "mtime_ns": 10**18 + number, "width": number + 1, "height": 2}
        row |= {"sha256": f"{number:064x}", "note": f"note {number % 3}" if number % 2 else None}
        rows.append(
            (f"{number:02}.png", row | ({"look": ["f" * 64, number, [0.1] * (number % 5)]} if number % 7 else {}))
        )
    every, first, rest = Rows.of(rows), Rows.of(rows[:20]), Rows.of(rows[20:])
    assert list(first + rest) == list(every)
    assert list((first + rest).take(np.arange(49, -1, -2))) == list(every)[::-2]
    assert [entry.size for entry in every] == [row["size"] for _, row in rows]
    assert [entry.look and [*entry.look[:2], [*entry.look.sharpness]] for entry in every] == [
        row.get("look") for _, row in rows
    ]
