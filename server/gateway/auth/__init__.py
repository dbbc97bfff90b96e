"""API keys and who asks."""
