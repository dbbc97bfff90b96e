"""The pages that the gateway serves: native ES modules as they are, no build step."""

from pathlib import Path

STATIC = Path(__file__).parent / "static"
SAMPLES = Path(__file__).parent / "samples"
