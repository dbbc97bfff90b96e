"""Runs heavy or dangerous work of the server in a confined child process (`models.processes.confined_process`)."""
