"""What the package costs, against what it was meant to cost: `python -m benchmarks`; see README.md beside this file."""
