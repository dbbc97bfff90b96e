"""The worker's end of the queue."""
