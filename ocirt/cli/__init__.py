"""The command line: one table, a small parser for what is well-formed, click for the rest."""
