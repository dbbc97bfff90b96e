"""Shares among our own long-running processes: how they are supervised, what they ask of the system, and how their tasks are ended."""
