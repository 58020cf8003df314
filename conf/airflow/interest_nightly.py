"""Airflow DAG of the nightly run (docs/operations.md): copy it to the DAGs folder, set the Variables below.

A night is three tasks, so that training can have a pool (and a machine) of its own. Each is `jobs.nightly` up to a
step; what the one before did is skipped, and so is what an attempt before did. Runs of one root never overlap:
max_active_runs = 1, and each waits for the night before it.

The first night takes in the log from its first day on, and trains. So it must come weeks later: after the days that are
held out (sequences.split), and some to train on. It is INTEREST_FIRST_NIGHT in the environment of the scheduler and of
every worker, since the file itself needs it.
"""

import os
from datetime import datetime, timedelta

from airflow import DAG
from airflow.operators.bash import BashOperator
from airflow.timetables.interval import CronDataIntervalTimetable

# Values of Airflow's Variables, read when a task starts; the defaults are those of a trial on one machine.
PROJECT = "{{ var.value.get('interest_project', '/opt/interest-evolution') }}"
ROOT = "{{ var.value.get('interest_root', '/data/interest') }}"
SOURCE = "{{ var.value.get('interest_source', '/data/shop.yaml') }}"
INPUT = "{{ var.value.get('interest_input', '/data/logs/{date}') }}"  # {date} is filled in by the job
CONF = "{{ var.value.get('interest_conf', 'conf/base.yaml') }}"
FIRST_DAY = "{{ var.value.get('interest_first_day', '2024-01-01') }}"  # the log's first day
FIRST_NIGHT = os.environ.get("INTEREST_FIRST_NIGHT", "2024-01-29")  # with four weeks of log by default
DAY = "{{ data_interval_start | ds }}"  # the UTC day whose log is complete when the run starts


def nightly(until: str) -> str:
    """The command of a task: the night up to a step. An exit code that is not 0 fails the task: docs/errors.md."""
    bootstrap = f'$([ "{DAY}" = "{FIRST_NIGHT}" ] && echo --from "{FIRST_DAY}" --bootstrap || true)'
    return (
        f'cd "{PROJECT}" && .venv/bin/python -m jobs.nightly --root "{ROOT}" --date "{DAY}" --source "{SOURCE}" '
        f'--input "{INPUT}" --conf "{CONF}" --until {until} {bootstrap}'
    )


with DAG(
    dag_id="interest_nightly",
    description="From a day's log to published interests of every user",
    # UTC, after the log of the day before is complete. A run's interval starts on that day: said outright, because what
    # a bare cron text means has changed between versions of Airflow.
    schedule=CronDataIntervalTimetable("30 2 * * *", timezone="UTC"),
    start_date=datetime.fromisoformat(FIRST_NIGHT),
    catchup=True,  # nights are built on each other: a missed one is made up for, in order
    max_active_runs=1,
    default_args={
        "depends_on_past": True,
        "retries": 2,  # a killed task goes on where it stopped
        "retry_delay": timedelta(minutes=10),
        "execution_timeout": timedelta(hours=8),
    },
    tags=["interest-evolution"],
) as dag:
    prepare = BashOperator(task_id="prepare", bash_command=nightly("sequences"))
    train = BashOperator(task_id="train", bash_command=nightly("gate"), pool="default_pool")
    # It fails, to be looked at, also where a new model did not pass the gate and the one in use published the scores:
    # no reason for the next night to wait.
    publish = BashOperator(task_id="publish", bash_command=nightly("retention"), depends_on_past=False)
    prepare >> train >> publish
