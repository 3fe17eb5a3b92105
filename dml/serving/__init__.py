"""Answers to people and programs: what the command line, the flows and a server have in common."""
