"""See ``python -m benchmarks.prediction --help``."""
