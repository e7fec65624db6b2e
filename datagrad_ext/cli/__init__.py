"""Command line, `python -m datagrad_ext`: train, reproduce, check and info, a module each, and what they share."""
