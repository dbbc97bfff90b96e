"""What processes of every kind share: how they are told to stop, and how they say why they ended."""
