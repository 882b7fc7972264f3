"""A plugin that logs the settings and figures of a kdtrain run to an MLflow tracking store."""

from __future__ import annotations

from typing import Any

import mlflow
import tomli

from kdtrain import Callback, EpochEnd, FitEnd, Run, Status, read_text

_ENDS = {Status.FAILED: "FAILED", Status.INTERRUPTED: "KILLED"}


class MlflowRun(Callback):
    """Makes an MLflow run of each kdtrain run. A resumed run goes on with its MLflow run.

    Args:
        uri: the tracking store, such as http://localhost:5000; by default MLFLOW_TRACKING_URI decides.
        experiment: name of the MLflow experiment.
    """

    def __init__(self, uri: str | None = None, experiment: str = "kdtrain") -> None:
        self.uri, self.experiment, self.run_id = uri, experiment, None

    def state_dict(self) -> dict[str, Any]:
        """Returns the MLflow run's id, which a resumed run needs."""
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the MLflow run's id."""
        self.run_id = state["run_id"]

    def on_fit_start(self, run: Run) -> None:
        """Starts the MLflow run, with the settings in the run's config.toml as parameters."""
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_experiment(self.experiment)
        name = "/".join(run.directory.parts[-2:])
        self.run_id = mlflow.start_run(run_id=self.run_id, run_name=name).info.run_id
        mlflow.log_params(tomli.loads(read_text(run.directory / "config.toml", 1 << 20)))

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Logs the epoch's figures."""
        mlflow.log_metrics({**event.metrics, "learning_rate": event.learning_rate}, step=event.epoch)

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Ends the MLflow run with the status of the fit."""
        mlflow.end_run(_ENDS.get(event.status, "FINISHED"))
