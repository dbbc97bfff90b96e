"""Webhooks: signatures and deliveries."""
