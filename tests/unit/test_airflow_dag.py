"""The DAG file: its commands are commands of the night, and Airflow's own loader takes it where Airflow is installed.

Airflow pins other versions than this project, so it lives in an environment of its own; INTEREST_AIRFLOW_PYTHON names
its interpreter.
"""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

from jobs import nightly
from jobs.night import STEPS
from jobs.settings import CONF_DIR

DAG_FILE = CONF_DIR / "airflow" / "interest_nightly.py"
LOADER = """
import json, sys
from airflow.models import DagBag
bag = DagBag(dag_folder=sys.argv[1], include_examples=False)
dag = bag.dags.get("interest_nightly")
tasks = {t.task_id: [sorted(t.upstream_task_ids), t.bash_command] for t in dag.tasks} if dag else {}
first = str(dag.next_dagrun_info(None).data_interval.start) if dag else None
print("\\n" + json.dumps({"errors": {k: str(v) for k, v in bag.import_errors.items()}, "tasks": tasks, "first": first}))
"""
ORDER = {"prepare": [], "train": ["prepare"], "publish": ["train"]}


class _Dag:
    """Stands for Airflow's: takes what it is given."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Task:
    made: list["_Task"]

    def __init__(self, task_id: str, bash_command: str, **_: Any) -> None:
        self.task_id, self.bash_command = task_id, bash_command
        self.made.append(self)

    def __rshift__(self, other: "_Task") -> "_Task":
        return other


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Shell commands by task, the templates as Airflow would fill them in."""
    _Task.made = []
    names = ("", ".operators", ".operators.bash", ".timetables", ".timetables.interval")
    modules = {name: ModuleType(name) for name in (f"airflow{part}" for part in names)}
    modules["airflow"].__dict__["DAG"] = _Dag
    modules["airflow.timetables.interval"].__dict__["CronDataIntervalTimetable"] = lambda *_, **__: None
    modules["airflow.operators.bash"].__dict__["BashOperator"] = _Task
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("interest_nightly", DAG_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    filled = {
        module.PROJECT: "/project",
        module.ROOT: "/data/root",
        module.SOURCE: "/data/shop.yaml",
        module.INPUT: "/data/logs/{date}",
        module.CONF: "conf/base.yaml",
        module.FIRST_DAY: "2024-01-01",
    }
    found = {}
    for task in _Task.made:
        command = task.bash_command
        for template, value in filled.items():
            command = command.replace(template, value)
        found[task.task_id] = command.replace(module.DAY, "{day}")
        assert "{{" not in found[task.task_id]
    return found


@pytest.mark.parametrize(("day", "bootstraps"), [("2024-01-29", True), ("2024-01-30", False)])
def test_each_command_is_one_that_the_night_takes(commands: dict[str, str], day: str, bootstraps: bool) -> None:
    seen = []
    for command in commands.values():
        told = command.replace("{day}", day).replace('cd "/project" && .venv/bin/python', "printf '%s\\n'")
        words = subprocess.run(["bash", "-ec", told], capture_output=True, text=True, check=True).stdout.splitlines()
        assert words[:2] == ["-m", "jobs.nightly"]
        arguments = nightly.parser().parse_args(words[2:])
        assert (str(arguments.date), arguments.root, arguments.bootstrap) == (day, "/data/root", bootstraps)
        assert str(arguments.first) == ("2024-01-01" if bootstraps else "None")
        assert arguments.input == ["/data/logs/{date}"]
        seen.append(arguments.until)
        assert shlex.split(told)
    assert seen == ["sequences", "gate", STEPS[-1]]


def test_airflows_own_loader_takes_the_file(tmp_path: Path) -> None:
    python = os.environ.get("INTEREST_AIRFLOW_PYTHON")
    if python is None:
        pytest.skip("INTEREST_AIRFLOW_PYTHON names no interpreter with Airflow (docs/operations.md)")
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "false"}
    environment.pop("PYTHONPATH", None)
    subprocess.run([python, "-m", "airflow", "db", "migrate"], env=environment, check=True, capture_output=True)
    command = [python, "-c", LOADER, str(DAG_FILE.parent)]
    loaded = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(loaded.stdout.splitlines()[-1])
    assert found["errors"] == {}
    assert {task: upstream for task, (upstream, _) in found["tasks"].items()} == ORDER
    assert found["first"].startswith("2024-01-29")
    assert all("-m jobs.nightly " in command for _, command in found["tasks"].values())
