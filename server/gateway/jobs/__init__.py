"""Asynchronous jobs and their events."""
