"""Breaking the chain on purpose: kills at every call, real disks that fail, and what must hold afterwards.

Tools of the tests and of ``make faults``, no part of the product. They use the machines that the tests are made of.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))
