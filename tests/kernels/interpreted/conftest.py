"""Tests of the Triton kernels on a CPU: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted`.

Triton reads the variable when it is first imported, so these tests need a process of their own: `tests/kernels/test_triton.py` starts it.
"""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
