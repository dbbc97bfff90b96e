"""Cancellation and deadlines for one event loop. Imports nothing of `server`."""
