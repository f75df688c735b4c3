"""Benchmarks of this machine: training, studies and surgery.

``material`` has the workload, ``plain`` the loop to compare with; ``training`` (with ``processes``
on a CPU and ``on_gpu`` on a GPU), ``studies`` and ``cutting`` measure; ``cli.bench`` prints.
"""
