"""examples/mlflow: a run is in a real local MLflow store. MLflow is not one of kdtrain's packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call, run_python
from tests.runs import metrics
from tests.tools import ROOT

PLUGIN = ROOT / "examples" / "mlflow" / "mlflow_run.py"
PACKAGES = ROOT / ".venv-mlflow"
READ = """
import json, mlflow
client = mlflow.MlflowClient("sqlite:///mlflow.db")
experiment = client.get_experiment_by_name("kdtrain")
runs = client.search_runs([experiment.experiment_id])
for run in runs:
    info, data = run.info, run.data
    history = {name: [p.value for p in client.get_metric_history(info.run_id, name)] for name in data.metrics}
    print(json.dumps([info.run_name, info.status, data.params, history]))
"""

pytestmark = pytest.mark.skipif(
    not (PACKAGES / "mlflow").is_dir(),
    reason="needs MLflow in .venv-mlflow: examples/mlflow/README.md has the command",
)


def test_settings_figures_and_status_are_in_the_store(spawn: Call, tiles: Path, tmp_path: Path) -> None:
    path = f"{PACKAGES}:{ROOT}"
    few = (
        *("--data-dir", tiles, "--val-size", "60", "--limit-train", "200", "--recipe", "none", "--epochs"),
        "2",
    )
    plugin = ("--plugin", f"{PLUGIN}:MlflowRun,uri=sqlite:///mlflow.db")
    spawn("fit", "--mode", "student", *few, *plugin, cwd=tmp_path, PYTHONPATH=path)
    read = run_python(READ, cwd=tmp_path, PYTHONPATH=path)
    name, status, params, history = json.loads(read.stdout)
    assert (name, status) == ("student/version_0", "FINISHED")
    assert (params["epochs"], params["student_arch"], params["limit_train"]) == ("2", "student_mlp", "200")
    rows = metrics(tmp_path / "logs/student/version_0")
    assert len(rows) == 2
    for name, values in history.items():
        assert values == [row[name] for row in rows]
    assert "loss/total" in history
