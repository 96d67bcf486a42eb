"""The command `realtime`: a running server in a closed loop at a fixed rate."""

from __future__ import annotations

from policy_server.commands.realtime.connections import Place
from policy_server.commands.realtime.loop import LoopOptions, Output, measure, realtime

__all__ = ["LoopOptions", "Output", "Place", "measure", "realtime"]
