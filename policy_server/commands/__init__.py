"""The command line, one module for each subject; `program` lists the commands."""
