"""RLlib's checkpoints of the old API stack: what `Algorithm.save` and `export_checkpoint` write."""
