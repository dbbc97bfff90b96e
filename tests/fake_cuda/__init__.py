"""A CUDA device for machines without one. `docs/gpu.md` lists what it cannot show."""
