"""From a recipe to a bundle: which parts of a run are there, which are stale and why, and what makes them. No torch."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from ldmkit.atomic import check_writable, no_room, sweep
from ldmkit.components.protocols import TextEncoder
from ldmkit.components.registry import Registry
from ldmkit.data.buckets import describe
from ldmkit.data.captions import caption_content_hash
from ldmkit.data.check import held_out_copies
from ldmkit.data.pictures import PictureIndex
from ldmkit.errors import LdmkitError, UsageError
from ldmkit.plan.ahead import check_ahead
from ldmkit.recipe import Recipe, check_components
from ldmkit.recipe.training import Training
from ldmkit.report import Reporter, duration
from ldmkit.run import gate
from ldmkit.run.dataset import Dataset
from ldmkit.run.decide import Plan, Step, lacking
from ldmkit.run.files import write_sealed
from ldmkit.run.first_weights import Start, find_starts, keep_start, kept_starts
from ldmkit.run.folder import Status
from ldmkit.run.grow import kept
from ldmkit.run.inputs import RunParts
from ldmkit.run.lock import leaving_nothing, locked
from ldmkit.run.parts import PartSpec, needed, parts_of, stage_names, stage_parts
from ldmkit.run.pretrained import find_source, identity
from ldmkit.run.workspace import Workspace
from ldmkit.training.launch import Launch

MAX_REMARKS = 10
"""lines about single pictures that a run prints; `ldmkit data check` has all of them"""
MUCH_WORK = 600.0
"""seconds of work that are not set aside without a question"""


class Pipeline:
    """A recipe's run: looks at the pictures once, then at each part when its turn comes."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        registry: Registry,
        reporter: Reporter,
        runs_dir: Path = Path("runs"),
        keeps_recipe: bool = True,
    ) -> None:
        """`keeps_recipe`: whether the run's folder gets this recipe, and not one that is its own, changed for once."""
        check_components(recipe, registry)
        self.recipe = recipe
        self.registry = registry
        self.reporter = reporter
        self.run_dir = runs_dir / recipe.name
        self.bundle_dir = Path(recipe.export.path) / recipe.name
        self._keeps_recipe = keeps_recipe
        self.dataset = Dataset(recipe.data, self.run_dir, reporter)
        self.checkpoint: str | None = None
        """whose weights are exported: a step, or `best`"""
        self._init_from: Path | None = None
        self._given: dict[str, Start] = {}
        self._buckets: list[str] = []
        self._gate_is_open = self._ignore_gate = self._announced = self._looked_ahead = False
        self._launch = Launch()

    @property
    def index(self) -> PictureIndex:
        """The run's pictures."""
        return self.dataset.index

    # --- what each part is made from -----------------------------------------------------------------------

    def start_from(self, source: Path, stages: Sequence[str]) -> None:
        """Has the networks that these stages train start from weights in `source`; see `find_starts`."""
        trained = [spec.name for spec in self._specs(stages) if spec.trained]
        if not trained:
            raise UsageError(f"--init-from {source}: {' and '.join(stages)} trains nothing")
        self._init_from = source
        self._given = find_starts(source, trained, self.run_dir)

    def _specs(self, stages: Sequence[str] | None) -> list[PartSpec]:
        """What these stages, or all, make. Raises LdmkitError for one that has nothing to make by this recipe."""
        there = parts_of(self.recipe)
        specs = [spec for stage in stages or stage_names() for spec in stage_parts(stage) if spec.name in there]
        if not specs and stages:
            lacking = " or ".join(dict.fromkeys(f"[{spec.section}]" for spec in stage_parts(stages[0])))
            raise LdmkitError(f"{stages[0]}: recipe {self.recipe.name} has no {lacking}, so there is nothing to do")
        return specs

    def _starts(self) -> dict[str, Start]:
        return {**kept_starts(self.run_dir), **self._given}

    def parts(self, *, anew: bool = False) -> RunParts:
        """Every part with the inputs that it would be made from now; `anew`: no autoencoder outlives its pictures."""
        frozen = False
        if self.recipe.t2i is not None:
            encoder: TextEncoder = self.registry.build("text_encoder", self.recipe.text.table(), where="[text]")
            frozen = not encoder.trainable
        pretrained = self.recipe.vae.pretrained
        return RunParts(
            self.recipe,
            self.run_dir,
            self.bundle_dir,
            pictures=self.index.hash,
            caption_files=self.dataset.caption_files if self.recipe.t2i is not None else "",
            frozen=frozen,
            pretrained=identity(pretrained, self.run_dir) if pretrained else "",
            no_result={"caption": self.registry.no_result("captioner", self.recipe.caption.table(), where="[caption]")},
            starts={part: start.sha256 for part, start in self._starts().items()},
            kept=partial(kept, index=self.index, most_new=0.0 if anew else self.recipe.data.grow),
        )

    def states(self, stages: Sequence[str] | None = None) -> dict[str, Status]:
        """State of each part of these stages, or of all; a part behind one that will be made is made too."""
        names = [spec.name for spec in self._specs(stages)]
        if not self.dataset.known:
            return dict.fromkeys(names, Status("missing", "the pictures are not there yet"))
        parts = self.parts()
        return {name: parts[name].status("hash" if self.dataset.closely else "size") for name in names}

    def steps(self, stages: Sequence[str], *, fresh: bool = False) -> dict[str, Step]:
        """What `run` would do about each part of these stages."""
        if not self.dataset.known:
            return {name: Step("make", status.reason) for name, status in self.states(stages).items()}
        return self._plan(self.parts(anew=fresh), stages, forced=None, fresh=fresh).steps

    def _plan(self, parts: RunParts, stages: Sequence[str], *, forced: str | None, fresh: bool) -> Plan:
        alone = len(stages) == 1
        begun = [] if self.checkpoint is None else [name for name in ("unet", "t2i") if name in parts]
        return Plan(parts, self._specs(stages), forced=forced, fresh=fresh, alone=alone, begun=begun)

    # --- doing it ------------------------------------------------------------------------------------------

    def run(
        self,
        stages: Sequence[str] | None = None,
        *,
        forced: str | None = None,
        fresh: bool = False,
        confirm: Callable[[str], None] = lambda _: None,
        bundle_dir: Path | None = None,
        ignore_gate: bool = False,
    ) -> None:
        """Makes what is missing or stale of these stages, or of all; `forced` names one to run again from nothing.

        With `fresh` nothing goes on from what another recipe or an interrupted run has trained. `confirm` is told what
        is about to be set aside where that took long to make, and raises LdmkitError where it is to stay. A bundle goes
        to `bundle_dir` where one is given. `ignore_gate` trains U-Nets whatever the autoencoder is like, and
        with whatever captions there are.

        Raises LdmkitError where a stage before them is not finished, a part is damaged beyond what lies in the run, or
        the autoencoder does not pass the gate.
        """
        self._gate_is_open = False
        self._ignore_gate = ignore_gate
        self.dataset.closely = forced not in (None, "export")
        started = time.monotonic()
        if bundle_dir is not None:
            self.bundle_dir = bundle_dir
        begun = self.run_dir.exists()
        stages = stages or stage_names()
        specs = self._specs(stages)
        is_first = self._launch.is_first
        with no_room(self.run_dir), locked(self.run_dir) if is_first else nullcontext(), self._launch.together():
            if is_first:
                sweep(self.run_dir)
                for spec in specs:  # now, and not after hours
                    check_writable(self.bundle_dir if spec.name == "bundle" else self.run_dir / spec.name)
                with leaving_nothing(self.run_dir, begun):
                    self.index  # noqa: B018 - fetched, scanned and remembered before the other processes look
                    sizes = [section.batch_size for _, section in self.recipe if isinstance(section, Training)]
                    self._buckets = describe(self.index, self.recipe.data, batch_size=max(sizes))
                self._keep_starts()
            self._launch.wait()
            parts = self.parts(anew=fresh or forced == "train-vae")
            plan = self._plan(parts, stages, forced=forced, fresh=fresh)
            for step in plan.steps.values():
                if step.action == "stop":
                    raise LdmkitError(step.reason)
            if self.recipe.vae.pretrained and _makes(plan.steps.get("vae")):
                find_source(self.recipe.vae.pretrained)  # now, and not after an hour of captions
            if self._launch.is_first:
                seconds, lost = plan.work_lost(parts)
                if seconds > MUCH_WORK:
                    confirm(
                        f"{self.run_dir}: {duration(seconds)} of work is set aside, since it is out of date: "
                        f"{'; '.join(lost)}"
                    )
                if self._keeps_recipe:
                    write_sealed(self.run_dir / "recipe.json", self.recipe.model_dump(mode="json"))
            made = [self._make(spec, parts, plan) for spec in specs]
            if any(made):
                self.reporter.line(f"{self.recipe.name}: done in {duration(time.monotonic() - started)}")
            else:
                self.reporter.line(f"{self.recipe.name}: everything is up to date; nothing to do")

    def preview_captions(self, count: int) -> None:
        """What the captioner says of a few pictures, on a page in the run's folder; see `ldmkit.caches.preview`."""
        from ldmkit.caches.preview import preview_captions

        begun = self.run_dir.exists()
        with locked(self.run_dir):
            with leaving_nothing(self.run_dir, begun):
                index = self.index
            file = self.run_dir / "captions-preview.html"
            preview_captions(file, self.recipe, self.registry, index, self.reporter, count=count)

    def _keep_starts(self) -> None:
        """Before anything is made: hours later would be late to hear that the weights do not fit."""
        kept = {start.sha256 for start in kept_starts(self.run_dir).values()}
        if new := [start for start in self._given.values() if start.sha256 not in kept]:
            from ldmkit.training.warm_start import check_starts

            check_starts(self.recipe, self.registry, new)
        for start in new:
            keep_start(start, self.run_dir)

    def _announce(self) -> None:
        """Before the first part is made: where this run reads and writes, and what is wrong with the pictures."""
        if not self._announced:
            self._announced = True
            self.reporter.line(f"reads {self.index.folder}; writes {self.run_dir} and {self.bundle_dir}")
            if self.index.news:
                self.reporter.line(f"data: since the pictures were last read {self.index.news}")
            twins = held_out_copies(self.index, self.recipe.data, self.recipe.seed) if self._launch.is_first else []
            for line in self.index.summary(MAX_REMARKS) + twins:
                self.reporter.line(f"data: {line}")
            for line in self._buckets:
                self.reporter.line(f"buckets: {line}")

    def _workspace(self, parts: RunParts) -> Workspace:
        shared = (self.recipe, self.registry, self.index, self.run_dir, parts, self.reporter)
        return Workspace(*shared, checkpoint=self.checkpoint)

    def _make(self, spec: PartSpec, parts: RunParts, plan: Plan) -> bool:
        """Makes one part where needed; True if it did."""
        part = parts[spec.name]
        step = plan.step(spec, parts)
        if step.action == "keep":
            return False
        if step.action == "stop":
            raise LdmkitError(step.reason)
        if spec.name != "captions" and not self._looked_ahead:
            self._looked_ahead = True
            made = {name for name, step in plan.steps.items() if _makes(step)}
            check_ahead(self._workspace(parts), made, self._launch.count, any_share=self._ignore_gate)
        if step.aside is not None:
            self._take_back(spec, parts, plan, step.aside)
            return True
        for name in needed(spec, self.recipe):
            if (status := plan.status(parts[name])).state != "done":
                raise LdmkitError(lacking(parts[name], status, spec))
        if spec.gated:
            self._pass_gate(parts)
        replaced = (
            f"the old one is kept in {self.run_dir / 'stale'}" if part.bundle is None else "a new one replaces it"
        )
        why = {
            "make": "not made yet",
            "resume": "interrupted, resuming" + (f" ({step.reason})" if step.reason else ""),
            "renew": f"asked for again; {replaced}" if step.asked else f"out of date ({step.reason}); {replaced}",
            "extend": f"out of date ({step.reason}); {replaced}",
            "go on": f"goes on {step.reason}",
            "restore": f"damaged ({step.reason})",
            "remake": f"damaged ({step.reason})",
        }[step.action]
        self._announce()
        self.reporter.line(f"{spec.label}: {why}")
        if start := self._starts().get(spec.name):
            self.reporter.line(f"{spec.label}: first weights: {start.source} (SHA-256 {start.sha256[:12]}...)")
        elif self._init_from is not None and spec.trained:
            self.reporter.line(f"{spec.label}: first weights: random, {self._init_from} has no finished {spec.name}")
        began = time.monotonic()
        self._launch.wait()  # every process has read the record before the first one changes it
        if self._launch.is_first:
            if step.action == "remake":
                part.discard()
            part.begin(anew=step.action in ("renew", "extend") and part.bundle is None, extend=step.action == "extend")
        self._launch.wait()
        if self._launch.is_first or spec.trained or spec.shared:
            with no_room(part.bundle or part.folder):
                facts = spec.load()(self._workspace(parts))
            if self._launch.is_first:
                content = {}
                if spec.name == "captions" and self.index.source is not None:
                    content = {"caption_content": caption_content_hash(self.index.source)}
                part.finish(time.monotonic() - began, facts=facts, **content)
                values = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items()]
                took = duration(time.monotonic() - began)
                self.reporter.line("  ".join([f"{spec.label}: done in {took}", *values]))
        self._launch.wait()
        plan.forget(spec.name)
        parts.refresh(spec.name)
        return True

    def _take_back(self, spec: PartSpec, parts: RunParts, plan: Plan, aside: Path) -> None:
        """This very part was set aside once, for another recipe's."""
        self._announce()
        self.reporter.line(f"{spec.label}: taken back from {aside}")
        self._launch.wait()
        if self._launch.is_first:
            parts[spec.name].take_back(aside)
        self._launch.wait()
        plan.forget(spec.name)
        parts.refresh(spec.name)

    def _pass_gate(self, parts: RunParts) -> None:
        """Shows what the autoencoder is like before the first U-Net trains; every process comes to the same end.

        Raises LdmkitError where it is not good enough.
        """
        if self._gate_is_open:
            return
        quality = gate.read_quality(parts["latents"].folder)
        rows = gate.check(quality, self.recipe.gate)
        for line in gate.table(quality, rows, ignored=self._ignore_gate):
            self.reporter.line(line)
        if not self._ignore_gate:
            gate.require(rows)
        self._gate_is_open = True


def _makes(step: Step | None) -> bool:
    """Whether a maker is called for it."""
    return step is not None and step.action not in ("keep", "stop", "take back")
