"""Datasets: the public offline tasks, and readers of other projects' formats; each dataset becomes `Episodes`."""

from envs.datasets.importing import import_datasets, open_datasets
from envs.datasets.opening import open_dataset, open_task
from envs.datasets.tasks import OFFLINE_TASKS, SUITES, OfflineTask, cost_score, find_offline_task

__all__ = [
    "OFFLINE_TASKS",
    "SUITES",
    "OfflineTask",
    "cost_score",
    "find_offline_task",
    "import_datasets",
    "open_dataset",
    "open_datasets",
    "open_task",
]
