"""Triton's interpreter is chosen before Triton is imported: these tests run in a process of their own.

`tests/kernels/test_triton.py` starts it; by hand: `TRITON_INTERPRET=1 pytest tests/interpreted`.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
