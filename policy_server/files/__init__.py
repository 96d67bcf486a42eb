"""Files that are written whole or not at all, locked, or unpacked with care."""
