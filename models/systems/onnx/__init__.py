"""ONNX graphs. ONNX Runtime from 1.29 on reports each session to its makers unless this variable is set before it is imported. Opsin never
reports anything; set the variable to 0 to allow it."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
