"""How others allocate, by their descriptions, on the same problems as ours: ``python -m benchmarks.baselines``.

Each baseline takes a :class:`widthwise.planner.problem.Problem` and gives widths within its budget, or None where it
finds none. What the published methods learn from data (loss, accuracy, Taylor scores) is here the problem's
importance, the same for all, so what is compared is allocation alone.
"""
