"""Processes of the service: contract with the supervisor, signals and priorities, and confined children for heavy or dangerous work."""
