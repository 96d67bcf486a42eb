"""TensorFlow SavedModels as RLlib exports them: load, inspect, prove and export. The only place that imports TensorFlow."""

from __future__ import annotations

import os

# TensorFlow reads these when it is imported, and at no other time. Its own log is for its developers; small batches are
# faster without oneDNN (DESIGN.md section 6), whose sums also differ in the last bits.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from policy_server.saved_model.policy import TensorFlowPolicy, load_policy

__all__ = ["TensorFlowPolicy", "load_policy"]
