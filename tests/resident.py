"""Run ``python -m hpc_maml``; ranks print their resident memory, in kB, after each outer step."""

import re
import runpy
from pathlib import Path

from hpc_maml.roles.outer_step import OuterStep

original = OuterStep.take


def take(self, *args, **words):
    step = original(self, *args, **words)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    resident = re.search(r"VmRSS:\s+(\d+)", status)[1]
    print(f"resident {resident}", flush=True)
    return step


OuterStep.take = take
runpy.run_module("hpc_maml", run_name="__main__", alter_sys=True)
