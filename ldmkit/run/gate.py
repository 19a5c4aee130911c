"""The gate before the U-Nets: whether the autoencoder is good enough to spend a night on its latents. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmkit.errors import LdmkitError
from ldmkit.recipe.sections import Gate
from ldmkit.run.files import check as check_file


@dataclass(frozen=True)
class Row:
    """One figure, and what the recipe asks of it."""

    name: str
    value: float
    key: str
    """of the recipe's [gate]; its first three letters say whether the limit is the least or the most"""
    limit: float
    """0: not looked at"""

    @property
    def passed(self) -> bool:
        """False as well for a value that is no number."""
        if not self.limit:
            return True
        return self.value >= self.limit if self.key.startswith("min") else self.value <= self.limit

    @property
    def wanted(self) -> str:
        if not self.limit:
            return "any"
        return f"{'at least' if self.key.startswith('min') else 'at most'} {self.limit:g}"


HELD_OUT = {"psnr": "min_psnr", "ssim": "min_ssim", "lpips": "max_lpips", "high_frequency": "max_high_frequency"}
CHANNELS = {"signal": "min_latent_signal", "kurtosis": "max_latent_kurtosis"}


def read_quality(folder: Path) -> dict[str, Any]:
    """What `encode` measured. Raises LdmkitError where it cannot be read."""
    file = folder / "quality.json"
    check_file(file)
    try:
        quality: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        rows = [quality["held_out"], *quality["channels"]]
        if not all(type(value) in (int, float) for row in rows for value in row.values()):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LdmkitError(f"{file}: missing or damaged; `ldmkit encode RECIPE --again` writes it anew") from None
    return quality


def check(quality: Mapping[str, Any], gate: Gate) -> list[Row]:
    """A row for each figure that was measured and has a limit in [gate], those of each latent channel behind it."""
    rows = [
        Row(name, quality["held_out"][name], key, getattr(gate, key))
        for name, key in HELD_OUT.items()
        if name in quality["held_out"]
    ]
    return rows + [
        Row(f"{name} of channel {i}", channel[name], key, getattr(gate, key))
        for i, channel in enumerate(quality["channels"])
        for name, key in CHANNELS.items()
    ]


def table(quality: Mapping[str, Any], rows: Sequence[Row], *, ignored: bool = False) -> list[str]:
    """The lines to show before a U-Net trains: the held-out figures, then each latent channel's, with the verdicts.

    `ignored`: whether the U-Net trains whatever the rows say.
    """

    def verdict(found: Sequence[Row]) -> str:
        if not all(row.passed for row in found):
            return "warn" if ignored else "fail"
        return "pass" if any(row.limit for row in found) else "-"

    held_out = quality["held_out"]["num_pictures"]
    where = f"on {held_out} held-out pictures" if held_out else "no picture is held out: PSNR, SSIM, LPIPS not measured"
    lines = [f"gate: the autoencoder, {where}"]
    by_name = {row.name: row for row in rows}
    for name in HELD_OUT:
        if row := by_name.get(name):
            lines.append(f"  {name} {row.value:>{21 - len(name)}.4g}  {row.wanted:<14} {verdict([row])}")
    limits = {name: by_name[f"{name} of channel 0"].wanted for name in CHANNELS if f"{name} of channel 0" in by_name}
    if limits:
        heads = ["mean", "std", *(f"{name} ({limit})" for name, limit in limits.items())]
        lines.append("  latents      " + "  ".join(f"{head:>9}" for head in heads))
        for i, channel in enumerate(quality["channels"]):
            found = [by_name[f"{name} of channel {i}"] for name in limits]
            values = [channel["mean"], channel["std"], *(row.value for row in found)]
            cells = [f"{value:>{max(9, len(head))}.4g}" for head, value in zip(heads, values, strict=True)]
            lines.append(f"  channel {i:<4} " + "  ".join(cells) + f"  {verdict(found)}")
    return lines


def require(rows: Sequence[Row]) -> None:
    """Raises LdmkitError naming each row that does not pass, and the way on."""
    failed = [row for row in rows if not row.passed]
    if failed:
        said = "; ".join(f"{row.name} is {row.value:.4g}, [gate] {row.key} = {row.limit:g}" for row in failed)
        raise LdmkitError(
            f"the gate: {said}. A U-Net cannot draw better than this autoencoder: train it longer or change [vae]; "
            "--force trains on its latents all the same, and 0 in [gate] takes a limit away"
        )
