"""Run ``python -m hpc_maml``; agents print their resident memory, in kB, after each outer step."""

import re
import runpy
from pathlib import Path

from hpc_maml.roles.agent import Agent

original = Agent._update


def update(self, *args):
    step = original(self, *args)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    resident = re.search(r"VmRSS:\s+(\d+)", status)[1]
    print(f"resident {resident}", flush=True)
    return step


Agent._update = update
runpy.run_module("hpc_maml", run_name="__main__", alter_sys=True)
