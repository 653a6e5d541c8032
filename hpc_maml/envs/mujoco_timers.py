"""MuJoCo's timers, which nobody here reads."""

import ctypes
from pathlib import Path

import mujoco


def stop_timers() -> None:
    """Stop them for all physics of this process; ``mujoco.set_mjcb_time(None)`` starts them.

    MuJoCo's Python package makes every part of a physics step read the clock twice, which takes a
    tenth of the time of small robots (docs/design.md, section 6). No result depends on it.
    """
    for library in Path(mujoco.__file__).parent.glob("libmujoco*"):
        ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "mjcb_time").value = None
