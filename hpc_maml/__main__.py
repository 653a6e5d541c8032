"""The start of the program: ``python -m hpc_maml``, and the command ``hpc_maml``.

An exception on any rank ends the job on all of them.
"""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from hpc_maml.errors import InputError
from hpc_maml.mpi.launcher import launcher_rank
from hpc_maml.mpi.loading import load_mpi
from hpc_maml.standard_streams import keep_standard_streams


def start() -> NoReturn:
    """Run the command line, and end this process."""
    # A warning that comes before the job listens (stopping.py) must wait, not kill.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

    speaks = launcher_rank() == 0
    output = keep_standard_streams(speaks=speaks)

    # Before NumPy and torch are loaded: their thread pools would take every core of the node on
    # every rank, and with more than one thread OpenBLAS gives other bits. More cores are for more
    # ranks.
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

    # For the command too: modules of one's own stand in the current folder.
    try:
        folder = str(Path.cwd())
    except OSError as error:
        if speaks:
            print(f"hpc_maml: the current folder is gone: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
    if not (folder in sys.path or sys.flags.safe_path):
        sys.path.insert(0, folder)

    try:
        load_mpi()
    except InputError as error:
        if speaks:
            print(f"hpc_maml: {error}", file=sys.stderr)
        sys.exit(2)

    try:
        from hpc_maml.cli import FAILED, main, only_prints
        from hpc_maml.mpi.runtime import guard_exit

        guard_exit()
        exit_code = main(sys.argv[1:])
    except BaseException as error:  # SystemExit as well: only the command line ends the program
        from hpc_maml.mpi.runtime import abort

        abort(error)
    sys.stdout.flush()
    if output.lost and only_prints(sys.argv[1:]):
        exit_code = exit_code or FAILED
    sys.exit(exit_code)


if __name__ == "__main__":
    start()
