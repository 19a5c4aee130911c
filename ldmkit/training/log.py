"""What a training stage writes down on its way: numbers, sample grids, loss curves, what it warns of."""

import torch

from ldmkit.run.folder import Part
from ldmkit.run.metrics import MetricsLog
from ldmkit.run.workspace import Workspace
from ldmkit.training.overfitting import CURVES, find_overfitting
from ldmkit.training.plots import plot_losses, save_picture
from ldmkit.training.task import Metrics


class TrainingLog:
    """`metrics.jsonl`, `samples/`, `loss.png`, TensorBoard and the plugins' hook; cut back to the step resumed from."""

    def __init__(self, workspace: Workspace, part: Part, resume_step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.workspace = workspace
        self.part = part
        self._log = MetricsLog(part.folder / "metrics.jsonl", resume_step)
        self._tensorboard = SummaryWriter(part.folder / "tensorboard", purge_step=resume_step + 1)

    def write(self, step: int, row: Metrics, pictures: dict[str, torch.Tensor]) -> None:
        """The numbers and the sample grids (H, W, 3) uint8 of one step, where there are any."""
        name, folder, workspace = self.part.name, self.part.folder, self.workspace
        for key, picture in pictures.items():
            save_picture(folder / "samples" / f"step_{step:06d}_{key}.png", picture)
            self._tensorboard.add_image(f"{name}/{key}", picture, step, dataformats="HWC")
        if row:
            self._log.write(step, row)
            for key, value in row.items():
                self._tensorboard.add_scalar(f"{name}/{key}", value, step)
            workspace.registry.hook.log_metrics(run_dir=workspace.run_dir, stage=name, step=step, metrics=row)
        if any(key in row for key in CURVES) and (warning := find_overfitting(self._log.rows, name)):
            workspace.reporter.line(f"{name}: step {step}: {warning}")
        if pictures:
            plot_losses(folder, f"{workspace.recipe.name}: {name}")

    def close(self) -> None:
        self._tensorboard.close()
