"""The gate before the U-Nets: whether the autoencoder is good enough to spend a night on its latents. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmkit.errors import LdmkitError
from ldmkit.recipe.sections import Gate


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


HELD_OUT = {"psnr": "min_psnr", "ssim": "min_ssim", "lpips": "max_lpips"}
CHANNELS = {"signal": "min_latent_signal", "kurtosis": "max_latent_kurtosis"}


def read_quality(folder: Path) -> dict[str, Any]:
    """What `encode` measured. Raises LdmkitError where it cannot be read."""
    file = folder / "quality.json"
    try:
        quality: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
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


def table(quality: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """The lines to show before a U-Net trains: the figures and their verdicts, then the latents' mean and std."""
    held_out = quality["held_out"]["num_pictures"]
    where = f"on {held_out} held-out pictures" if held_out else "no picture is held out: PSNR, SSIM, LPIPS not measured"
    lines = [f"gate: the autoencoder, {where}"]
    for row in rows:
        verdict = "pass" if row.passed else "warn"
        lines.append(f"  {row.name:<22} {row.value:>9.4g}  {row.wanted:<14} {verdict if row.limit else '-'}")
    for i, channel in enumerate(quality["channels"]):
        lines.append(f"  latent channel {i}:  mean {channel['mean']:.4g}  std {channel['std']:.4g}")
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
