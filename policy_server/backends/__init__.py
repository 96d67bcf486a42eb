"""Where a policy computes: in this process, or in the replicas of a Ray Serve deployment."""
