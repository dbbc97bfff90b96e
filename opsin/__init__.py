"""The front door of Opsin: the `opsin` command and the client."""
