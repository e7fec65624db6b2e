"""Command line, `python -m datagrad_ext`: a module a sub-command (train, check, info) and what they share."""
