"""ONNX Runtime from 1.29 on tells its makers about each session unless this is set before it is imported. Opsin tells nobody anything; who
wants it sets the variable to 0."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
