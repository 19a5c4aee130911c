"""Inputs that are nearly right: good ones with a few edits, drawn by hypothesis."""

from collections.abc import Sequence

from hypothesis import strategies as st

# What parsers trip over, put in where it hurts.
PIECES = (
    b"",
    b"\0",
    b"\xff",
    b"\x80",
    b"\n",
    b'"',
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b"=",
    b".",
    b",",
    b"-",
    b"1e999",
    b"nan",
    b"../",
    b"99999999999999999999",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\0",
    b"\\ud800",
    b"\xed\xa0\x80",
    b"\xe2\x80\xae",
    b"true",
    b"null",
    b"[" * 3000,
)


@st.composite
def spoilt(draw: st.DrawFn, good: Sequence[bytes], pieces: Sequence[bytes] = ()) -> bytes:
    """One of `good` with up to six bytes or stretches replaced, doubled, moved or cut; `pieces` are put in as well."""
    data = bytearray(draw(st.sampled_from(list(good))))
    for _ in range(draw(st.integers(0, 6))):
        first = draw(st.integers(0, len(data)))
        last = min(len(data), first + draw(st.sampled_from([0, 1, 1, 2, 4, 16, 300])))
        how = draw(st.integers(0, 4))
        if how == 0:
            data[first:last] = draw(st.sampled_from([*PIECES, *pieces]))
        elif how == 1:
            data[first:last] = draw(st.binary(max_size=8))
        elif how == 2:
            data[first:first] = data[first:last]
        elif how == 3 and first < len(data):
            data[first] ^= 1 << draw(st.integers(0, 7))
        else:
            del data[first : draw(st.sampled_from([last, last, len(data)]))]
    return bytes(data)
