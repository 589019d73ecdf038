"""Sample pipelines, each beside its access manifest. `python -m pipelines.orders --help` says how to run one."""

from __future__ import annotations

import logging

# Importing Beam warns that Google's BigQuery client is missing. Nothing here uses it.
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools not found"))
