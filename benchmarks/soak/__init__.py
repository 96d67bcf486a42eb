"""Hours in minutes: mixed traffic on one server, whose memory, files and threads have to stay."""
