"""Repositories of the Hugging Face hub: their addresses, and their files on this computer. Imports no torch."""
