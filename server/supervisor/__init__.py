"""`opsin serve`: executes a private Valkey, gateways and workers; restarts what dies or hangs; ends what it started."""

from server.supervisor.supervisor import serve

__all__ = ["serve"]
