"""Run ``python -m hpc_maml``, and write how many messages of which kind each rank sent."""

import json
import runpy
from collections import Counter
from pathlib import Path

from mpi4py import MPI

from hpc_maml.mpi.exchange import Messenger

sent: Counter[str] = Counter()
send = Messenger.send


def counted(self, message, dest, tag):
    sent[type(message).__name__] += 1
    send(self, message, dest, tag)


Messenger.send = counted
try:
    runpy.run_module("hpc_maml", run_name="__main__", alter_sys=True)
finally:
    Path(f"messages_{MPI.COMM_WORLD.rank}.json").write_text(json.dumps(sent))
