"""What an observation of Meta-World shows of the objects of each task, read from a whole batch.

A row says where the package's class (``_get_pos_objects``, ``_get_quat_objects``) reads a position
and an orientation; tests/test_metaworld.py compares every row with it.
"""

from collections.abc import Callable
from typing import NamedTuple

import mujoco
import numpy as np
from mujoco.batch import Batch

KNOB_RADIUS = 0.05  # of the dial, in m


class Thing(NamedTuple):
    """An object: a body, site or geom that is its position, and one that is its orientation.

    ``turned`` is a body whose quaternion is taken as MuJoCo has it (w, x, y, z), or a body, site or
    geom whose rotation matrix becomes a quaternion (x, y, z, w); without either, it is ``fixed``.
    """

    position: tuple[str, str]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    body: str = ""
    turned: tuple[str, str] | None = None
    fixed: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    knob: str = ""  # a joint whose angle moves the position on a circle


def of_body(name: str, *offset: float) -> Thing:
    """Return an object that is a body."""
    return Thing(("body", name), offset or (0.0, 0.0, 0.0), body=name)  # type: ignore[arg-type]


def of_site(site: str, body: str = "", *offset: float) -> Thing:
    """Return an object at a site, turned like a body, or not at all."""
    return Thing(("site", site), offset or (0.0, 0.0, 0.0), body=body)  # type: ignore[arg-type]


def of_geom(kind: str, name: str, geom: str) -> Thing:
    """Return an object at a body or geom, turned like a geom."""
    return Thing((kind, name), turned=("geom", geom))


PUCK = of_geom("body", "obj", "objGeom")  # a cylinder to push, pick and place
PUCK_GEOM = of_geom("geom", "objGeom", "objGeom")
PLATE = of_geom("geom", "puck", "puck")
DOOR = of_geom("geom", "handle", "handle")
MUG = of_geom("body", "obj", "mug")
STICK = Thing(("body", "stick"), turned=("body", "stick"))
OBJECTS: dict[str, tuple[Thing, ...]] = {
    "assembly": (of_site("RoundNut-8", "RoundNut"),),
    "basketball": (of_body("bsktball"),),
    "bin-picking": (of_body("obj"),),
    "box-close": (of_body("top_link"),),
    "button-press-topdown": (of_body("button", 0.0, 0.0, 0.193),),
    "button-press-topdown-wall": (of_body("button", 0.0, 0.0, 0.193),),
    "button-press": (of_body("button", 0.0, -0.193, 0.0),),
    "button-press-wall": (of_body("button", 0.0, -0.193, 0.0),),
    "coffee-button": (Thing(("site", "buttonStart"), fixed=(1.0, 0.0, 0.0, 0.0)),),
    "coffee-pull": (MUG,),
    "coffee-push": (MUG,),
    "dial-turn": (Thing(("body", "dial"), body="dial", knob="knob_Joint_1"),),
    "disassemble": (of_site("RoundNut-8", "RoundNut"),),
    "door-close": (DOOR,),
    "door-lock": (of_site("lockStartLock", "door_link"),),
    "door-open": (DOOR,),
    "door-unlock": (of_site("lockStartUnlock", "door_link"),),
    "drawer-close": (Thing(("body", "drawer_link"), (0.0, -0.16, 0.05)),),
    "drawer-open": (of_body("drawer_link", 0.0, -0.16, 0.0),),
    "faucet-close": (of_site("handleStartClose", "faucetBase", 0.0, 0.0, -0.01),),
    "faucet-open": (of_site("handleStartOpen", "faucetBase", 0.0, 0.0, -0.01),),
    "hammer": (of_body("hammer"), of_body("nail_link")),
    "hand-insert": (of_body("obj"),),
    "handle-press": (of_site("handleStart"),),
    "handle-press-side": (of_site("handleStart"),),
    "handle-pull": (of_site("handleRight"),),
    "handle-pull-side": (of_site("handleCenter"),),
    "lever-pull": (of_geom("site", "leverStart", "objGeom"),),
    "peg-insert-side": (Thing(("site", "pegGrasp"), turned=("site", "pegGrasp")),),
    "peg-unplug-side": (of_site("pegEnd", "plug1"),),
    "pick-out-of-hole": (of_body("obj"),),
    "pick-place": (PUCK,),
    "pick-place-wall": (PUCK_GEOM,),
    "plate-slide": (PLATE,),
    "plate-slide-back": (PLATE,),
    "plate-slide-back-side": (PLATE,),
    "plate-slide-side": (PLATE,),
    "push": (PUCK,),
    "push-back": (PUCK_GEOM,),
    "push-wall": (PUCK_GEOM,),
    "reach": (PUCK,),
    "reach-wall": (PUCK,),
    "shelf-place": (PUCK,),
    "soccer": (Thing(("body", "soccer_ball"), turned=("body", "soccer_ball")),),
    "stick-pull": (STICK, of_site("insertion")),
    "stick-push": (STICK, of_site("insertion", "", 0.0, 0.09, 0.0)),
    "sweep": (of_body("obj"),),
    "sweep-into": (PUCK,),
    "window-close": (of_site("handleCloseStart"),),
    "window-open": (of_site("handleOpenStart"),),
}
FIELDS = {"body": ("xpos", "xmat"), "site": ("site_xpos", "site_xmat")}
FIELDS["geom"] = ("geom_xpos", "geom_xmat")
OBJECT = {
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
}


class Reader:
    """Live views of a batch by name."""

    def __init__(self, batch: Batch, model: mujoco.MjModel) -> None:
        self.batch = batch
        self.model = model

    def _id(self, kind: str, name: str) -> int:
        return mujoco.mj_name2id(self.model, OBJECT[kind], name)

    def position(self, kind: str, name: str) -> np.ndarray:
        """Return the position of a body, site or geom, a view ``[B, 3]`` in m."""
        return self.batch.bind(FIELDS[kind][0])[:, self._id(kind, name)]

    def matrix(self, kind: str, name: str) -> np.ndarray:
        """Return the rotation matrix of a body, site or geom, a view ``[B, 9]``."""
        return self.batch.bind(FIELDS[kind][1])[:, self._id(kind, name)]

    def quaternion(self, body: str) -> np.ndarray:
        """Return the orientation of a body, a view ``[B, 4]``: w, x, y, z."""
        return self.batch.bind("xquat")[:, self._id("body", body)]

    def angle(self, joint: str) -> np.ndarray:
        """Return the position of a joint with one degree of freedom, a view ``[B]``."""
        return self.batch.bind("qpos")[:, self.model.joint(joint).qposadr[0]]

    def thing(self, thing: Thing) -> Callable[[np.ndarray], None]:
        """Return what writes an object's position and orientation into ``[B, 7]``."""
        place, offset = self.position(*thing.position), np.array(thing.offset)
        angle = self.angle(thing.knob) if thing.knob else None
        quaternion = self.quaternion(thing.body) if thing.body else None
        matrix = self.matrix(*thing.turned) if thing.turned else None

        def write(out: np.ndarray) -> None:
            np.add(place, offset, out=out[:, :3])
            if angle is not None:
                out[:, 0] += KNOB_RADIUS * np.sin(angle)
                out[:, 1] -= KNOB_RADIUS * np.cos(angle)
            if matrix is not None:
                out[:, 3:] = quaternions(matrix)
            else:
                out[:, 3:] = thing.fixed if quaternion is None else quaternion

        return write


def quaternions(matrices: np.ndarray) -> np.ndarray:
    """Return the quaternions ``[B, 4]``, as x, y, z, w, of rotation matrices ``[B, 9]``.

    The sign is that which follows from the largest of x, y, z, w being positive (Markley 2008,
    "Unit quaternion from rotation matrix"), as SciPy's Rotation has it.
    """
    m = matrices.reshape(-1, 3, 3)
    trace = m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2]
    rows = np.empty((len(m), 4, 4))  # four multiples of the quaternion, one for each component
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        rows[:, i, i] = 1.0 - trace + 2.0 * m[:, i, i]
        rows[:, i, j] = rows[:, j, i] = m[:, j, i] + m[:, i, j]
        rows[:, i, 3] = rows[:, 3, i] = m[:, k, j] - m[:, j, k]
    rows[:, 3, 3] = 1.0 + trace
    largest = np.stack([m[:, 0, 0], m[:, 1, 1], m[:, 2, 2], trace], axis=1).argmax(1)
    chosen = rows[np.arange(len(m)), largest]
    return chosen / np.sqrt((chosen * chosen).sum(1))[:, None]
