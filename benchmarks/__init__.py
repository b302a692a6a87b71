"""The measured claims of the README, re-runnable: `make bench`, or `python -m benchmarks.bench --help`."""
