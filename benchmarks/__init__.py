"""Benchmarks of the penalty step: cases x contestants, each proved right before it is timed.

    python -m benchmarks.run          measure (cases.py, contestants.py, op_cases.py are the tables)
    python -m benchmarks.report       turn results files into README's table, docs/performance.md and plots

A *penalty step* returns the gradients of loss + penalty for all parameters; *plain* is the same step without
the penalty. Letters: x input, y output, J the data gradient, N batch.
"""
