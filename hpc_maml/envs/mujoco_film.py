"""Images of MuJoCo's models, drawn without a screen."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import mujoco
import numpy as np

from hpc_maml.errors import InputError

PLATFORMS = ("egl", "osmesa")  # that need no screen
CAMERA = "track"  # of the models of robots
MOST_GEOMS = 10_000
TRIAL = """
import importlib, sys, mujoco
context = importlib.import_module(f"mujoco.{sys.argv[1]}").GLContext(8, 8)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), 150)
"""


def find_platform() -> str:
    """Return the name of an OpenGL platform that works; raises InputError if there is none."""
    wanted = os.environ.get("MUJOCO_GL")
    for name in (wanted,) if wanted else PLATFORMS:  # tried apart, as a failure may abort
        trial = subprocess.run(
            [sys.executable, "-c", TRIAL, name],
            env=os.environ | {"MUJOCO_GL": name},
            capture_output=True,
            check=False,
        )
        if trial.returncode == 0:
            return name
    raise InputError(
        f"MuJoCo cannot draw here ({f'{wanted} was' if wanted else 'egl and osmesa were'} tried): "
        "install libegl1 with the driver of a GPU or Mesa's (libegl-mesa0), or libosmesa6."
    )


def images(
    model: mujoco.MjModel, positions: np.ndarray, width: int, height: int
) -> Iterator[np.ndarray]:
    """Yield an image, uint8 ``[height, width, 3]``, for each position ``[n, nq]``.

    MuJoCo's Renderer takes the platform that was chosen before MuJoCo was imported, too early for
    this: hence its parts.
    """
    context = import_module(f"mujoco.{find_platform()}").GLContext(width, height)
    try:
        context.make_current()
        drawing = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, drawing)
        scene, view = mujoco.MjvScene(model, MOST_GEOMS), mujoco.MjrRect(0, 0, width, height)
        option, camera = mujoco.MjvOption(), mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = model.camera(CAMERA).id
        data, everything = mujoco.MjData(model), mujoco.mjtCatBit.mjCAT_ALL.value
        for position in positions:
            data.qpos = position
            mujoco.mj_forward(model, data)
            mujoco.mjv_updateScene(model, data, option, None, camera, everything, scene)
            mujoco.mjr_render(view, scene, drawing)
            image = np.empty((height, width, 3), np.uint8)
            mujoco.mjr_readPixels(image, None, view, drawing)
            yield np.flipud(image)  # OpenGL begins at the bottom
        drawing.free()
    finally:
        context.free()
