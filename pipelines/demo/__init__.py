"""The demo: sample orders, the pipeline over them, and totals that were computed without it."""
