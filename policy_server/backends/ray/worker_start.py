"""Done by each worker of a Ray that this server has started, as it starts: Ray imports it there.

Ray's list of such modules is the only way to reach its workers before they become Ray Serve's
controller, which Ray may start anew at any time.
"""

from __future__ import annotations

from policy_server.backends.ray.replica_class import share_replica_class

share_replica_class()
