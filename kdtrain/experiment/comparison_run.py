"""A finished comparison with its files, for the command line and for Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdtrain.errors import UsageError, unknown_name_message
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.report.comparison import Comparison, Difference, ModelResult
from kdtrain.report.comparison_file import FILES
from kdtrain.report.conditions import condition_sentences
from kdtrain.report.verdict import evidence, gap_sentence, verdict
from kdtrain.runtime.files import make_folder, write_bytes


@dataclass(frozen=True, eq=False, repr=False)
class ComparisonRun:
    """A comparison and its files.

    Attributes:
        comparison: the figures.
        directory: the run directory.
        picture: the chart, where the settings have it copied to, or in the run directory.
    """

    comparison: Comparison
    directory: Path
    picture: Path

    @property
    def results(self) -> tuple[ModelResult, ...]:
        """The figures of each model and seed."""
        return self.comparison.results

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The paired differences between students; the first is that of distillation."""
        return self.comparison.differences

    @property
    def report(self) -> Path:
        """The page with all figures."""
        return self.directory / "report.html"

    @property
    def figures(self) -> Path:
        """The figures as JSON."""
        return self.directory / "compare.json"

    @property
    def sentences(self) -> tuple[str, ...]:
        """The plain verdict, then what it rests on and what else the comparison shows."""
        warning = self.comparison.far_apart
        return (
            verdict(self.comparison),
            evidence(self.comparison),
            gap_sentence(self.comparison),
            *condition_sentences(self.comparison.conditions),
            *([] if warning is None else [warning]),
        )

    def checkpoint(self, model: str, seed: int | None = None) -> Path:
        """Returns the best weights of a model.

        Args:
            model: its name in the comparison, such as ``student_kd``.
            seed: its seed; the first one by default.

        Raises:
            UsageError: the comparison has not trained this model with this seed.
        """
        trained = [result for result in self.results if result.directory is not None]
        for result in trained:
            if result.model == model and seed in (None, result.seed):
                return self.directory / str(result.directory) / "checkpoints" / "best.safetensors"
        names = [f"{result.model}, seed {result.seed}" for result in trained]
        wanted = model if seed is None else f"{model}, seed {seed}"
        raise UsageError(f"checkpoint: {unknown_name_message('trained model', wanted, names)}")

    def __repr__(self) -> str:
        text = repr(self.differences[0]).strip("<>").removeprefix("Difference ")
        return f"<ComparisonRun {text} ({self.directory})>"


def place_picture(config: FitConfig, directory: Path) -> Path:
    """Copies the chart of a comparison to where the settings say; returns its path."""
    picture = directory / FILES["picture"]
    if config.image_save_dir is None and config.image_save_name is None:
        return picture
    copy = picture_path(config.image_save_dir, config.image_save_name, Path("compare.png"))
    make_folder(copy.parent)
    write_bytes(copy, picture.read_bytes())
    return copy


def picture_path(folder: Path | None, name: Path | None, default: Path) -> Path:
    """Returns the path of an image; a name without a folder is a path, as in the sample."""
    if name is None:
        return (folder or Path()) / default
    return folder / name if folder is not None else name
