"""When terms of the loss start, ramp in and are taken back, against sequences of metrics; the adaptive weight."""

import json
import random
from typing import Any

import pytest
import torch

from ldmkit.recipe.training import GanGuard, VaeLoss
from ldmkit.vae.adversarial import LossGuard, adaptive_weight


def guard(*, start: int = 0, **changes: Any) -> LossGuard:
    """A guard over l1 (weight 1) and gan (weight 0.8); `changes` are keys of the guard or of gan."""
    settings = {key: value for key, value in changes.items() if key in GanGuard.model_fields}
    loss = {key: value for key, value in changes.items() if key in VaeLoss.model_fields}
    losses = {"l1": VaeLoss(use="l1"), "gan": VaeLoss(use="patchgan", **{"weight": 0.8, **loss})}
    return LossGuard(
        losses, adversarial=["gan"], earliest={"l1": 0, "gan": start}, settings=GanGuard(**settings), memory={}
    )


def metrics(psnr: float, lpips: float | None = None) -> dict[str, float]:
    return {"held_out_psnr": psnr} | ({"held_out_lpips": lpips} if lpips is not None else {})


def test_ramp() -> None:
    ramped = guard(start=100, ramp_steps=4)
    found = [ramped.weight("gan", step) for step in (98, 99, 100, 101, 102, 103, 104, 105, 10_000)]
    assert found == pytest.approx([None, None, 0.0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    at_once = guard(start=100)
    assert [at_once.weight("gan", step) for step in (99, 100, 101)] == [None, 0.8, 0.8]
    assert [ramped.weight("l1", step) for step in (0, 99, 100)] == [1.0] * 3


@pytest.mark.parametrize(
    ("psnr", "plateau_psnr", "evaluations", "expected"),
    [
        ([10, 12, 14, 15, 15.05, 15.08, 15.09], 0.1, 3, 7),  # 0.09 over the best of the first four
        ([10, 12, 14, 15, 15.05, 15.08, 15.2], 0.1, 3, None),  # 0.2 in three evaluations
        ([10, 12, 11, 11.5, 12.05, 12.05, 12.05], 0.1, 2, 4),  # a dip counts against the best before it
        ([10, 9], 0.1, 1, 2),
        ([10], 0.1, 1, None),  # nothing to compare with
        ([10, 10.01, 10.02], 0.0, 1, None),  # 0: any gain is one
        ([10, 10.01, 10.01], 0.0, 1, 3),
    ],
)
def test_plateau(psnr: list[float], plateau_psnr: float, evaluations: int, expected: int | None) -> None:
    waiting = guard(start_on_plateau=True, plateau_psnr=plateau_psnr, plateau_evaluations=evaluations, ramp_steps=10)
    starts = {}
    for i, value in enumerate(psnr, start=1):
        if lines := waiting.review(i * 50, metrics(value)).lines:
            (starts[i],) = lines
    assert list(starts) == ([expected] if expected else [])
    last = 50 * len(psnr)
    if expected is None:
        assert waiting.weight("gan", last) is None
        return
    assert starts[expected].startswith("gan starts: held-out PSNR gained ")
    start = 50 * expected
    assert [waiting.weight("gan", start + i) for i in (-1, 0, 5, 10, 11)] == pytest.approx([None, 0, 0.4, 0.8, 0.8])


def test_plateau_waits_for_the_earliest_step() -> None:
    waiting = guard(start=120, start_on_plateau=True, plateau_evaluations=1)
    lines = [waiting.review(step, metrics(10.0)).lines for step in (50, 100, 150, 200)]
    assert [len(each) for each in lines] == [0, 0, 1, 0]
    assert waiting.start("gan") == 150


def test_goes_back_and_lowers_its_weight() -> None:
    """The best stays: a second fall goes back to it again, and halves the weight again."""
    guarded = guard(start=150, ramp_steps=100, max_psnr_drop=1.0)
    assert guarded.review(100, metrics(15.0)).is_best
    dip = guarded.review(150, metrics(12.0))  # 3 dB below, but the adversarial term has not begun
    assert (dip.lines, dip.is_best, dip.go_back) == ([], False, False)
    assert guarded.review(200, metrics(20.0)).is_best
    assert not guarded.review(250, metrics(19.1)).go_back
    decision = guarded.review(300, metrics(18.5))
    assert (decision.go_back, decision.is_best) == (True, False)
    assert decision.lines == [
        "held-out PSNR is 18.50 dB, 1.50 below the best: back to the weights of step 200; the weight of gan is now 0.4"
    ]
    assert [guarded.weight("gan", step) for step in (300, 350, 400, 500)] == pytest.approx([0, 0.2, 0.4, 0.4])
    decision = guarded.review(350, metrics(18.9))
    assert decision.go_back
    assert "back to the weights of step 200; the weight of gan is now 0.2" in decision.lines[0]
    assert not guarded.review(400, metrics(19.5)).lines
    assert guarded.review(450, metrics(20.1)).is_best
    assert "back to the weights of step 450" in guarded.review(500, metrics(3.0)).lines[0]
    assert guarded.weight("gan", 10_000) == pytest.approx(0.1)
    assert guarded.weight("l1", 500) == 1.0


def test_lpips_alone() -> None:
    guarded = guard(max_psnr_drop=0, max_lpips_rise=0.03)
    assert guarded.review(50, metrics(20.0, 0.2)).is_best
    assert guarded.review(100, metrics(10.0, 0.15)).is_best  # a PSNR of half as much is not looked at
    assert not guarded.review(150, metrics(10.0, 0.179)).go_back
    assert guarded.review(200, metrics(30.0, 0.185)).lines == [
        "held-out LPIPS is 0.1850, 0.0350 above the best: back to the weights of step 100; the weight of gan is now 0.4"
    ]


def test_both_are_named() -> None:
    guarded = guard()
    guarded.review(50, metrics(20.0, 0.2))
    (line,) = guarded.review(100, metrics(18.0, 0.3)).lines
    assert line.startswith(
        "held-out PSNR is 18.00 dB, 2.00 below the best and held-out LPIPS is 0.3000, 0.1000 above the best: back to"
    )


@pytest.mark.parametrize("changes", [{"max_psnr_drop": 0, "max_lpips_rise": 0}, {"weight": 0.0}, {"start": 10_000}])
def test_never(changes: dict[str, Any]) -> None:
    """Margins of 0, an adversarial term that weighs nothing, one that has not begun."""
    guarded = guard(**changes)
    for step, value in ((50, 20.0), (100, 2.0)):
        decision = guarded.review(step, metrics(value, 1 / value))
        assert (decision.lines, decision.go_back) == ([], False)


def test_switched_off_for_good() -> None:
    guarded = guard(weight_factor=0.0)
    guarded.review(50, metrics(20.0))
    assert guarded.review(100, metrics(10.0)).go_back
    assert guarded.weight("gan", 200) == 0
    assert not guarded.review(150, metrics(5.0)).go_back  # it was not the adversarial term


def test_nothing_to_review() -> None:
    assert guard().review(50, {}).lines == []
    plain = LossGuard(
        {"l1": VaeLoss(use="l1")}, adversarial=[], earliest={"l1": 0}, settings=GanGuard(), memory=(memory := {})
    )
    assert plain.review(50, metrics(20.0)).lines == []
    assert memory == {}


def test_never_goes_back_to_what_it_would_go_back_from() -> None:
    """On random walks: the weights gone back to lie within both margins of the best of either metric, since the
    adversarial term began, so that metrics which do not change lead back no more."""
    backs = moved = 0
    for seed in range(60):
        rng = random.Random(seed)
        guarded = guard(start=rng.choice([0, 500]), max_psnr_drop=1.0, max_lpips_rise=0.03)
        psnr, lpips = 15.0, 0.3
        kept = metrics(psnr, lpips)
        best: dict[str, float] = {}
        for step in range(50, 2000, 50):
            # An adversarial term's trade: sharper, and a little worse by PSNR.
            psnr, lpips = psnr + rng.gauss(0, 0.5), lpips + rng.gauss(-0.004, 0.015)
            decision = guarded.review(step, metrics(psnr, lpips))
            if decision.is_best:
                kept, moved = metrics(psnr, lpips), moved + 1
            if step <= guarded.earliest["gan"] or not best:
                best = dict(kept)
            elif not decision.go_back:
                best = metrics(max(best["held_out_psnr"], psnr), min(best["held_out_lpips"], lpips))
            fallen = best["held_out_psnr"] - psnr > 1 or lpips - best["held_out_lpips"] > 0.03
            assert decision.go_back == (fallen and step > guarded.earliest["gan"]), (seed, step)
            if decision.go_back:
                backs += 1
                psnr, lpips = kept["held_out_psnr"], kept["held_out_lpips"]
                assert best["held_out_psnr"] - psnr <= 1 + 1e-9
                assert lpips - best["held_out_lpips"] <= 0.03 + 1e-9
    assert backs > 100
    assert moved > 300


def test_all_it_remembers_is_json() -> None:
    """A guard that is written down and read after each evaluation says what the other says."""
    rng = random.Random(0)
    changes = {"start_on_plateau": True, "plateau_evaluations": 2, "ramp_steps": 70}
    one, memory = guard(**changes), guard(**changes).memory
    lines = []
    for step in range(50, 3000, 50):
        other = guard(**changes)
        other.memory.clear()
        other.memory.update(json.loads(json.dumps(memory)))
        memory = other.memory
        if one.weight("gan", step - 1) is not None:
            sums = {"loss": rng.choice([0.0, 0.5]), "real": rng.gauss(0, 1), "fake": rng.gauss(0, 1)}
            one.note("gan", **sums)
            other.note("gan", **sums)
        found = metrics(20 + rng.gauss(0, 0.6), 0.2)
        decision = one.review(step, found)
        assert other.review(step, found) == decision
        assert other.weight("gan", step + 20) == one.weight("gan", step + 20)
        lines += decision.lines
    for words in ("gan starts", "back to the weights", "has won"):
        assert any(words in line for line in lines), words


@pytest.mark.parametrize(
    ("noted", "words"),
    [
        (
            {"loss": 0.009, "real": 6.0, "fake": -6.0},
            "warning: the discriminator of gan has won (loss 0.0090; mean logits 6.00",
        ),
        ({"loss": 0.0, "real": 2.0, "fake": -1.5}, "warning: the discriminator of gan has won"),  # the hinge
        (  # which may be the decoder's merit
            {"loss": 0.693, "real": 0.01, "fake": -0.03},
            "the discriminator of gan sees no difference (mean logits 0.01 of pictures, -0.03 of",
        ),
    ],
)
def test_collapsed_discriminator_is_reported_once_each_time(noted: dict[str, float], words: str) -> None:
    healthy = {"loss": 0.4, "real": 0.6, "fake": -0.4}
    watched = guard(start=100)
    warnings = []
    for step in range(50, 600, 50):
        for _ in range(3):
            if step > 100:
                watched.note("gan", **(healthy if step == 400 else noted))
        warnings += [(step, line) for line in watched.review(step, metrics(20.0)).lines]
    # From 100 to 150 it has only begun; at 400 it had recovered.
    assert [step for step, _ in warnings] == [200, 450]
    assert all(line.startswith(words) for _, line in warnings)


def test_collapse_is_of_the_mean_over_the_interval() -> None:
    watched = guard(start=10)
    watched.review(50, metrics(20.0))
    watched.note("gan", loss=0.0, real=9.0, fake=-9.0)
    watched.note("gan", loss=0.03, real=3.0, fake=-3.0)
    assert watched.review(100, metrics(20.0)).lines == []  # 0.015
    watched.note("gan", loss=0.0, real=9.0, fake=-9.0)
    watched.note("gan", loss=0.015, real=3.0, fake=-3.0)
    assert len(watched.review(150, {}).lines) == 1  # 0.0075; nothing need be held out for this


@pytest.mark.parametrize(
    ("reconstruction", "generator", "max_weight", "expected"),
    [
        # gradients of c * sum(w * (3, 4)) have norm 5 c
        (2.0, 4.0, 1e4, 10 / (20 + 1e-4)),
        (2.0, 4.0, 0.25, 0.25),
        (1.0, 0.0, 1e9, 5 / 1e-4),
        (0.0, 1.0, 1.0, 0.0),
    ],
)
def test_ratio_of_gradient_norms(reconstruction: float, generator: float, max_weight: float, expected: float) -> None:
    weight = torch.nn.Parameter(torch.tensor([0.5, -1.0], dtype=torch.float64))
    output = weight * torch.tensor([3.0, 4.0], dtype=torch.float64)  # both losses are factors of its sum
    gradients = [torch.full_like(output, factor) for factor in (reconstruction, generator)]
    found = adaptive_weight(output, *gradients, weight, max_weight)
    assert found.shape == ()
    assert not found.requires_grad
    assert found.item() == pytest.approx(expected, rel=1e-6)
    output.sum().backward()  # its graph is still there
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.tensor([3.0, 4.0], dtype=torch.float64))
