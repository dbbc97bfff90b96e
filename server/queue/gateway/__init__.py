"""The gateway's end of the queue."""
