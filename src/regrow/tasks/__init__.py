"""Learning tasks: a data set's inputs and targets, loss and metric. The folder is the registry."""

from regrow.tasks.base import TASKS, Details, Head, Task, check_task, register_task, task_of
from regrow.tasks.metric import ACCURACY, Metric

__all__ = [
    "ACCURACY",
    "TASKS",
    "Details",
    "Head",
    "Metric",
    "Task",
    "check_task",
    "register_task",
    "task_of",
]
