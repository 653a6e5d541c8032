"""Rewards and success of Meta-World's tasks for all episodes of a task at once.

Each class names the class of the package whose formula (``compute_reward``, version "v2") it
computes, in float64 whatever the type of the actions; tests/test_metaworld.py compares the two.
Tolerance and Hamacher product are those of its ``reward_utils``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from hpc_maml.envs.metaworld_objects import Reader

VALUE_AT_MARGIN = 0.1  # of a tolerance
RADIUS = 0.05  # around the target, in m, where a class has none of its own
PAD_THRESHOLD = 0.05  # distance of a pad from an object between the two, in m
Scores = tuple[np.ndarray, np.ndarray]  # rewards, and whether the task is done now, [B]


def tolerance(
    x: np.ndarray,
    high: float | np.ndarray,
    margin: float | np.ndarray,
    low: float = 0.0,
    *,
    gaussian: bool = False,
) -> np.ndarray:
    """Return 1 where x ``[B]`` is in [low, high], and less with its distance over the margin.

    The distance is 0.1 at the margin, along 1 / (1 + d^2) or, if ``gaussian``, exp(-d^2 / 2). With
    margin 0 all else is 0.
    """
    distance = np.maximum(low - x, x - high)
    inside = distance <= 0
    relative = np.divide(
        distance, margin, out=np.full_like(distance, np.inf), where=np.not_equal(margin, 0)
    )
    if gaussian:
        outside = np.exp(np.log(VALUE_AT_MARGIN) * relative * relative)
    else:
        outside = 1.0 / (1.0 + (1.0 / VALUE_AT_MARGIN - 1.0) * relative * relative)
    return np.where(inside, 1.0, outside)


def hamacher(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a b / (a + b - a b) ``[B]``, and 0 where both are 0."""
    product = a * b
    below = a + b - product
    return np.divide(product, below, out=np.zeros_like(below), where=below > 0)


def length(vectors: np.ndarray) -> np.ndarray:
    """Return the Euclidean lengths ``[...]`` of vectors ``[..., n]``."""
    return np.sqrt((vectors * vectors).sum(-1))


def inside(points: np.ndarray, zero: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Return 1 outside the boxes between two corners ``[B, 3]``, inside from 0 to 1 at ``one``.

    The package's ``rect_prism_tolerance``.
    """
    shares = (points - zero) / (one - zero)
    within = ((shares >= 0.0) & (shares <= 1.0)).all(1)
    return np.where(within, shares.prod(1), 1.0)


class Scene:
    """What rewards read: the package's environment after its reset, and views of the batch."""

    def __init__(self, env: Any, reader: Reader) -> None:
        self.env = env
        self.reader = reader
        self._right = reader.position("site", "rightEndEffector")
        self._left = reader.position("site", "leftEndEffector")
        self.left_pad = reader.position("body", "leftpad")
        self.right_pad = reader.position("body", "rightpad")

    def fingers(self) -> np.ndarray:
        """Return the middle between the fingertips ``[B, 3]``, in m."""
        return (self._right + self._left) / 2.0


class Reward(ABC):
    """The reward of one task; constants are taken when the environment was just reset."""

    def __init__(self, scene: Scene) -> None:
        env = scene.env
        self.scene = scene
        self.target = np.array(env._target_pos, np.float64)
        self.object_start = np.array(env.obj_init_pos, np.float64)
        self.fingers_start = np.array(env.init_tcp, np.float64)
        self.hand_start = np.array(env.hand_init_pos, np.float64)

    @abstractmethod
    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores of observations ``[B, 39]`` and the actions before them ``[B, 4]``."""

    def caging(
        self,
        objects: np.ndarray,
        actions: np.ndarray,
        *,
        radius: float,
        pad_threshold: float,
        xz_threshold: float,
        dense: bool = True,
    ) -> np.ndarray:
        """Return how well the gripper is around objects ``[B, 3]`` and closes on them, ``[B]``.

        ``SawyerXYZEnv._gripper_caging_reward`` with high density, or without.
        """
        sides = []
        for pad in (self.scene.left_pad, self.scene.right_pad):
            margin = abs(abs(pad[:, 1] - self.object_start[1]) - pad_threshold)
            sides.append(tolerance(abs(pad[:, 1] - objects[:, 1]), pad_threshold, margin, radius))
        caging = hamacher(hamacher(*sides), self._around(objects, xz_threshold))
        gripping = hamacher(caging, np.where(caging > 0.97, effort(actions), 0.0))
        return (gripping + caging) / 2.0 if dense else gripping

    def caging_between_pads(
        self, objects: np.ndarray, *, radius: float, xz_threshold: float
    ) -> tuple[np.ndarray, Callable[[float], np.ndarray]]:
        """Return how well the gripper is around objects, ``[B]``: ``_gripper_caging_reward`` of
        several classes' own. Also what gives how well the pads are within a farthest distance.

        What these classes keep as the pads' places after the reset is a view of the present ones.
        """
        left, right = self.scene.left_pad[:, 1], self.scene.right_pad[:, 1]
        y = objects[:, 1]
        pads = (
            (left - y, abs(abs(y - left) - PAD_THRESHOLD)),
            (y - right, abs(abs(y - right) - PAD_THRESHOLD)),
        )

        def within(farthest: float) -> np.ndarray:
            return hamacher(*(tolerance(x, farthest, margin, radius) for x, margin in pads))

        return hamacher(within(PAD_THRESHOLD), self._around(objects, xz_threshold)), within

    def _around(self, objects: np.ndarray, threshold: float) -> np.ndarray:
        """Return how near the gripper is to objects in the x-z plane ``[B]``."""
        xz = [0, 2]
        return tolerance(
            length(self.scene.fingers()[:, xz] - objects[:, xz]),
            threshold,
            length(self.object_start[xz] - self.fingers_start[xz]) - threshold,
        )

    def lifted(self, seen: np.ndarray, reach: float) -> np.ndarray:
        """Return whether the object is in the open gripper, and 1 cm above its start, ``[B]``."""
        near = length(seen[:, 4:7] - self.scene.fingers()) < reach
        return near & (seen[:, 3] > 0) & (seen[:, 6] - 0.01 > self.object_start[2])


def effort(actions: np.ndarray) -> np.ndarray:
    """Return how hard actions ``[B, 4]`` close the gripper, from 0 to 1."""
    return actions[:, 3].clip(0.0, 1.0)


class Reach(Reward):
    """``SawyerReachEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        left = length(self.scene.fingers() - self.target)
        in_place = tolerance(left, RADIUS, length(self.hand_start - self.target))
        return 10.0 * in_place, left <= RADIUS


class Push(Reward):
    """``SawyerPushEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        puck, opened = seen[:, 4:7], seen[:, 3]
        left = length(puck - self.target)
        in_place = tolerance(left, RADIUS, length(self.object_start - self.target))
        grasped = self.caging(puck, actions, radius=0.015, pad_threshold=0.05, xz_threshold=0.005)
        held = (length(puck - self.scene.fingers()) < 0.02) & (opened > 0)
        reward = np.where(held, 4.0 * grasped + 1.0 + 5.0 * in_place, 2.0 * grasped)
        return np.where(left < RADIUS, 10.0, reward), left <= RADIUS


class PickPlace(Reward):
    """``SawyerPickPlaceEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        puck = seen[:, 4:7]
        left = length(puck - self.target)
        in_place = tolerance(left, RADIUS, length(self.object_start - self.target))
        caging, _ = self.caging_between_pads(puck, radius=0.015, xz_threshold=0.005)
        gripping = hamacher(caging, np.where(caging > 0.97, effort(actions), 0.0))
        reward = hamacher((gripping + caging) / 2.0, in_place)
        reward = reward + np.where(self.lifted(seen, 0.02), 1.0 + 5.0 * in_place, 0.0)
        return np.where(left < RADIUS, 10.0, reward), left <= 0.07


class Sweep(Reward):
    """``SawyerSweepEnvV3``."""

    grip_margin: ClassVar[float] = 0.01
    xz_threshold: ClassVar[float] = 0.005

    def _targets(self, objects: np.ndarray) -> np.ndarray:
        return self.target

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        cube, radius = seen[:, 4:7], 0.02
        target = self._targets(cube)
        left = length(cube - target)
        in_place = tolerance(left, RADIUS, length(self.object_start - target))
        caging, within = self.caging_between_pads(
            cube, radius=radius, xz_threshold=self.xz_threshold
        )
        gripping = np.where(caging > 0.95, within(radius + self.grip_margin), 0.0)
        grasped = (caging + gripping) / 2.0
        reward = 2.0 * grasped + 6.0 * hamacher(grasped, in_place)
        return np.where(left < RADIUS, 10.0, reward), left <= RADIUS


class SweepInto(Sweep):
    """``SawyerSweepIntoGoalEnvV3``."""

    grip_margin = 0.005
    xz_threshold = 0.01

    def _targets(self, objects: np.ndarray) -> np.ndarray:
        """Return the goal at the height of each object ``[B, 3]``."""
        targets = np.tile(self.target, (len(objects), 1))
        targets[:, 2] = objects[:, 2]
        return targets


class Basketball(Reward):
    """``SawyerBasketballEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        ball, radius = seen[:, 4:7], 0.08
        target = np.array([*self.target[:2], 0.3])  # above the hoop
        scale = np.array([1.0, 1.0, 2.0])
        left = length((ball - target) * scale)
        in_place = tolerance(left, radius, length((self.object_start - target) * scale))
        grasped = self.caging(ball, actions, radius=0.025, pad_threshold=0.06, xz_threshold=0.005)
        lifted = self.lifted(seen, 0.035)
        reward = hamacher(np.where(lifted, 1.0, grasped), in_place)
        reward = reward + np.where(lifted, 1.0 + 5.0 * in_place, 0.0)
        return np.where(left < radius, 10.0, reward), left <= radius


class ShelfPlace(Reward):
    """``SawyerShelfPlaceEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        block, target = seen[:, 4:7], self.target
        left = length(block - target)
        in_place = tolerance(left, RADIUS, length(self.object_start - target))
        grasped = self.caging(
            block, actions, radius=0.02, pad_threshold=0.05, xz_threshold=0.01, dense=False
        )
        reward = hamacher(grasped, in_place)
        height, depth = 0.24, 3.0 * RADIUS  # of the space below and before the shelf
        x, y, z = block.T
        below = (z > 0.0) & (z < height) & (abs(x - target[0]) < 0.15)
        before = below & (y > target[1] - depth) & (y < target[1])
        loss = hamacher(
            np.where(before, (y - (target[1] - depth)) / depth, 0.0),
            np.where(before, (height - z) / height, 0.0),
        )
        in_place = np.where(before, (in_place - loss).clip(0.0, 1.0), in_place)
        in_place = np.where(below & (y > target[1]), 0.0, in_place)
        reward = reward + np.where(self.lifted(seen, 0.025), 1.0 + 5.0 * in_place, 0.0)
        return np.where(left < RADIUS, 10.0, reward), left <= 0.07


class PegInsertSide(Reward):
    """``SawyerPegInsertionSideEnvV3``."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.head_start = np.array(scene.env.peg_head_pos_init)
        self.head = scene.reader.position("site", "pegHead")
        self.boxes = [
            [
                scene.reader.position("site", f"{corner}_corner_collision_box_{box}")
                for corner in ("bottom_right", "top_left")
            ]
            for box in (2, 1)
        ]

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        scale, radius = np.array([1.0, 2.0, 2.0]), 0.07
        left = length((self.head - self.target) * scale)
        in_place = tolerance(left, radius, length((self.head_start - self.target) * scale))
        in_place = hamacher(in_place, hamacher(*(inside(self.head, *box) for box in self.boxes)))
        grasped = self.caging(
            seen[:, 4:7], actions, radius=0.0075, pad_threshold=0.03, xz_threshold=0.005
        )
        lifted = self.lifted(seen, 0.08)
        reward = hamacher(np.where(lifted, 1.0, grasped), in_place)
        reward = reward + np.where(lifted, 1.0 + 5.0 * in_place, 0.0)
        return np.where(left <= radius, 10.0, reward), left <= radius


class DoorOpen(Reward):
    """``SawyerDoorEnvV3``."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.angle = scene.reader.angle("doorjoint")

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        hand, threshold = seen[:, :3], 0.12
        handle = seen[:, 4:7] - np.array([0.05, 0.0, 0.0])
        outside = length(hand[:, :2] - handle[:, :2]) - threshold
        # A funnel around the handle, above which the hand is to stay until it is there.
        floor = np.where(outside > 0, 0.04 * np.log(np.where(outside > 0, outside, 1.0)) + 0.4, 0.0)
        low = tolerance(floor - hand[:, 2], 0.01, floor / 2.0)
        above = np.where(hand[:, 2] >= floor, 1.0, low)
        off = length(hand - handle - np.array([0.05, 0.03, -0.01]))
        ready = hamacher(above, tolerance(off, threshold / 2.0, 0.5))
        left = np.pi / 2.0 + np.pi / 6.0 + self.angle
        opened = 0.2 * (self.angle < -np.pi / 90.0) + 0.8 * tolerance(left, 0.5, np.pi / 3.0)
        pull = (actions[:, 3].clip(-1.0, 1.0) + 1.0) / 2.0
        done = abs(seen[:, 4] - self.target[0]) <= 0.08
        return np.where(done, 10.0, 2.0 * hamacher(ready, pull) + 8.0 * opened), done


class DoorClose(Reward):
    """``SawyerDoorCloseEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        handle = seen[:, 4:7]
        left = length(handle - self.target)
        margin = length(self.object_start - self.target)
        in_place = tolerance(left, RADIUS, margin, gaussian=True)
        hand = tolerance(
            length(self.scene.fingers() - self.target),
            0.25 * RADIUS,
            length(self.hand_start - handle) + 0.1,
            gaussian=True,
        )
        return np.where(left < RADIUS, 10.0, 3.0 * hand + 6.0 * in_place), left <= 0.08


class DrawerOpen(Reward):
    """``SawyerDrawerOpenEnvV3``."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.way = float(scene.env.maxDist)  # how far to pull, in m

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        hand, handle = seen[:, :3], seen[:, 4:7]
        left = length(handle - self.target)
        opening = tolerance(left, 0.02, self.way)
        scale = np.array([3.0, 3.0, 1.0])
        handle_start = self.target + np.array([0.0, self.way, 0.0])
        margin = length((handle_start - self.fingers_start) * scale)
        caging = tolerance(length((handle - hand) * scale), 0.01, margin)
        return 5.0 * (caging + opening), left <= 0.03


class DrawerClose(Reward):
    """``SawyerDrawerCloseEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        handle, near = seen[:, 4:7], 0.005
        left = length(handle - self.target)
        margin = abs(length(self.object_start - self.target) - RADIUS)
        in_place = tolerance(left, RADIUS, margin)
        reach = tolerance(
            length(handle - self.scene.fingers()),
            near,
            abs(length(self.object_start - self.fingers_start) - near),
            gaussian=True,
        )
        done = left <= RADIUS + 0.015
        reward = hamacher(hamacher(reach, effort(actions)), in_place)
        return 10.0 * np.where(done, 1.0, reward), done


class ButtonPressTopdown(Reward):
    """``SawyerButtonPressTopdownEnvV3``."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.way = float(scene.env._obj_to_target_init)  # how far to press, in m

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        button = seen[:, 4:7]
        away = length(button - self.scene.fingers())
        left = abs(self.target[2] - button[:, 2])
        near = tolerance(away, 0.01, length(button - self.fingers_start))
        pressed = tolerance(left, 0.005, self.way)
        reward = 5.0 * hamacher(1.0 - seen[:, 3], near)
        return reward + np.where(away <= 0.03, 5.0 * pressed, 0.0), left <= 0.024


class WindowOpen(Reward):
    """``SawyerWindowOpenEnvV3``."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.handle_start = np.array(scene.env.window_handle_pos_init)

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        handle, near = seen[:, 4:7], 0.02
        left = abs(handle[:, 0] - self.target[0])
        margin = abs(abs(self.object_start[0] - self.target[0]) - RADIUS)
        in_place = tolerance(left, RADIUS, margin)
        margin = abs(length(self.handle_start - self.fingers_start) - near)
        reach = tolerance(length(handle - self.scene.fingers()), near, margin)
        return 10.0 * hamacher(reach, in_place), left <= RADIUS


class LeverPull(Reward):
    """``SawyerLeverPullEnvV3``."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.lever_start = np.array(scene.env._lever_pos_init)
        self.angle = scene.reader.angle("LeverAxis")

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        hand, lever = seen[:, :3], seen[:, 4:7]
        # The arm lifts the lever with its shoulder, which is behind and above the hand.
        scale, offset = np.array([4.0, 1.0, 4.0]), np.array([0.0, 0.055, 0.07])
        ready = tolerance(
            length((hand + offset - lever) * scale),
            0.02,
            length((self.fingers_start + offset - self.lever_start) * scale),
        )
        margin = length(self.lever_start - self.target)
        in_place = tolerance(length(lever - self.target), 0.04, margin)
        return 10.0 * hamacher(ready, in_place), abs(self.angle + np.pi / 2.0) <= np.pi / 24.0


# By name of the task: the fifteen of ML10. The others are scored by the package itself, one episode
# after the other.
REWARDS: dict[str, type[Reward]] = {
    "basketball": Basketball,
    "button-press-topdown": ButtonPressTopdown,
    "door-close": DoorClose,
    "door-open": DoorOpen,
    "drawer-close": DrawerClose,
    "drawer-open": DrawerOpen,
    "lever-pull": LeverPull,
    "peg-insert-side": PegInsertSide,
    "pick-place": PickPlace,
    "push": Push,
    "reach": Reach,
    "shelf-place": ShelfPlace,
    "sweep": Sweep,
    "sweep-into": SweepInto,
    "window-open": WindowOpen,
}
