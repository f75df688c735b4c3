"""Tasks: what is learnt of a data set, and what it is scored by. The folder is the registry."""

from regrow.tasks.base import TASKS, Task, check_task, register_task, task_of
from regrow.tasks.metric import ACCURACY, Metric

__all__ = ["ACCURACY", "TASKS", "Metric", "Task", "check_task", "register_task", "task_of"]
