"""`benchmark quality`: nDCG against bytes an item, for every data set, method, budget and seed.

In: names of data sets and methods, budgets, seeds, and a folder. Out: one table, one picture, one JSON line; and in the
folder a file for each cell of the matrix, so that hours of work may be done in pieces (`matrix`).

`settings` says what is measured and how `ours` is set; `plan` makes the cells; `store` keeps their results; `cell`
computes one, in a process that `worker` owns; `derive` makes tables of records, and nothing else.
"""

from hse_dist.benchmark.quality.matrix import benchmark_quality

__all__ = ["benchmark_quality"]
