"""What the command line does, one module a subject; `program` names the commands."""
