"""Run ``python -m hpc_maml``; agents print their resident memory, in kB, after each outer step."""

import re
import runpy
from pathlib import Path

from hpc_maml.roles import agent

original = agent.meta_step


def meta_step(*args):
    found = original(*args)
    resident = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[
        1
    ]
    print(f"resident {resident}", flush=True)
    return found


agent.meta_step = meta_step
runpy.run_module("hpc_maml", run_name="__main__", alter_sys=True)
