"""Rewards and success of Meta-World's tasks for all episodes of the tasks of a class at once.

B is the number of all these episodes, ``[B, ...]`` their rows.

Each class names the class of the package whose formula (``compute_reward``, version "v2") it
computes, in float64 whatever the type of the actions; tests/test_metaworld.py compares the two.
Tolerance and Hamacher product are those of its ``reward_utils``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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
    """What rewards read: the package's environments after their resets, and views of the batch.

    The batch has ``episodes`` rows of each environment, one environment after the other.
    """

    def __init__(self, envs: Sequence[Any], episodes: int, reader: Reader) -> None:
        self.envs = envs
        self.episodes = episodes
        self.reader = reader
        self._right = reader.position("site", "rightEndEffector")
        self._left = reader.position("site", "leftEndEffector")
        self.left_pad = reader.position("body", "leftpad")
        self.right_pad = reader.position("body", "rightpad")

    def constant(self, name: str) -> np.ndarray:
        """Return a copy of what the environment of each row has by a name, float64 ``[B, ...]``."""
        values = np.array([getattr(env, name) for env in self.envs], np.float64)
        return values.repeat(self.episodes, 0)

    def fingers(self) -> np.ndarray:
        """Return the middle between the fingertips ``[B, 3]``, in m."""
        return (self._right + self._left) / 2.0


class Reward(ABC):
    """The reward of one class; constants are taken when the environments were just reset."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.target = scene.constant("_target_pos")
        self.object_start = scene.constant("obj_init_pos")
        self.fingers_start = scene.constant("init_tcp")
        self.hand_start = scene.constant("hand_init_pos")

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
        reach: float | None = None,
        strength: float = 1.0,
    ) -> np.ndarray:
        """Return how well the gripper is around objects ``[B, 3]`` and closes on them, ``[B]``.

        ``SawyerXYZEnv._gripper_caging_reward`` with high density, or without; with a ``reach``,
        with medium density. ``strength`` is the effort that counts as full.
        """
        sides = []
        for pad in (self.scene.left_pad, self.scene.right_pad):
            margin = abs(abs(pad[:, 1] - self.object_start[:, 1]) - pad_threshold)
            sides.append(tolerance(abs(pad[:, 1] - objects[:, 1]), pad_threshold, margin, radius))
        caging = hamacher(hamacher(*sides), self._around(objects, xz_threshold))
        closed = actions[:, 3].clip(0.0, strength) / strength
        gripping = hamacher(caging, np.where(caging > 0.97, closed, 0.0))
        if reach is not None:
            margin = abs(length(self.object_start - self.fingers_start) - reach)
            away = length(objects - self.scene.fingers())
            return (gripping + tolerance(away, reach, margin)) / 2.0
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
            length(self.object_start[:, xz] - self.fingers_start[:, xz]) - threshold,
        )

    def gripped(self, objects: np.ndarray, radius: float, grip: float, xz: float) -> np.ndarray:
        """Return how well the gripper is around objects and its pads are near them, ``[B]``."""
        caging, within = self.caging_between_pads(objects, radius=radius, xz_threshold=xz)
        return (caging + np.where(caging > 0.95, within(radius + grip), 0.0)) / 2.0

    def held(self, seen: np.ndarray, reach: float) -> np.ndarray:
        """Return whether the object is in the open gripper, ``[B]``."""
        return (length(seen[:, 4:7] - self.scene.fingers()) < reach) & (seen[:, 3] > 0)

    def lifted(self, seen: np.ndarray, reach: float) -> np.ndarray:
        """Return whether the object is in the open gripper, and 1 cm above its start, ``[B]``."""
        return self.held(seen, reach) & (seen[:, 6] - 0.01 > self.object_start[:, 2])


def effort(actions: np.ndarray) -> np.ndarray:
    """Return how hard actions ``[B, 4]`` close the gripper, from 0 to 1."""
    return actions[:, 3].clip(0.0, 1.0)


def funnel(
    heights: np.ndarray,
    distances: np.ndarray,
    slope: float,
    rise: float,
    threshold: float | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the floor of a funnel around an object ``[B]``, and how far heights are below it.

    ``distances`` are those from its middle, within ``threshold`` of which there is no floor.
    """
    outside = distances - threshold
    floor = np.where(outside > 0, slope * np.log(np.where(outside > 0, outside, 1.0)) + rise, 0.0)
    return floor, np.maximum(floor - heights, 0.0)


def upright(seen: np.ndarray, ideal: tuple[float, float, float, float], most: float) -> np.ndarray:
    """Return how near orientations are to the ideal one, from 1 to 0 at a distance, ``[B]``."""
    return np.maximum(1.0 - length(seen[:, 7:11] - np.array(ideal)) / most, 0.0)


class Reach(Reward):
    """``SawyerReachEnvV3``, ``SawyerReachWallEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        left = length(self.scene.fingers() - self.target)
        in_place = tolerance(left, RADIUS, length(self.hand_start - self.target))
        return 10.0 * in_place, left <= RADIUS


class Push(Reward):
    """``SawyerPushEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        puck = seen[:, 4:7]
        left = length(puck - self.target)
        in_place = tolerance(left, RADIUS, length(self.object_start - self.target))
        grasped = self.caging(puck, actions, radius=0.015, pad_threshold=0.05, xz_threshold=0.005)
        reward = np.where(
            self.held(seen, 0.02), 4.0 * grasped + 1.0 + 5.0 * in_place, 2.0 * grasped
        )
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
        grasped = self.gripped(cube, radius, self.grip_margin, self.xz_threshold)
        reward = 2.0 * grasped + 6.0 * hamacher(grasped, in_place)
        return np.where(left < RADIUS, 10.0, reward), left <= RADIUS


class SweepInto(Sweep):
    """``SawyerSweepIntoGoalEnvV3``."""

    grip_margin = 0.005
    xz_threshold = 0.01

    def _targets(self, objects: np.ndarray) -> np.ndarray:
        """Return the goal at the height of each object ``[B, 3]``."""
        targets = self.target.copy()
        targets[:, 2] = objects[:, 2]
        return targets


class Basketball(Reward):
    """``SawyerBasketballEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        ball, radius = seen[:, 4:7], 0.08
        target = self.target.copy()
        target[:, 2] = 0.3  # above the hoop
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
        below = (z > 0.0) & (z < height) & (abs(x - target[:, 0]) < 0.15)
        front = target[:, 1] - depth
        before = below & (y > front) & (y < target[:, 1])
        loss = hamacher(
            np.where(before, (y - front) / depth, 0.0),
            np.where(before, (height - z) / height, 0.0),
        )
        in_place = np.where(before, (in_place - loss).clip(0.0, 1.0), in_place)
        in_place = np.where(below & (y > target[:, 1]), 0.0, in_place)
        reward = reward + np.where(self.lifted(seen, 0.025), 1.0 + 5.0 * in_place, 0.0)
        return np.where(left < RADIUS, 10.0, reward), left <= 0.07


class PegInsertSide(Reward):
    """``SawyerPegInsertionSideEnvV3``."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.head_start = scene.constant("peg_head_pos_init")
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
        away = length(hand[:, :2] - handle[:, :2])
        floor, below = funnel(hand[:, 2], away, 0.04, 0.4, threshold)
        above = tolerance(below, 0.01, floor / 2.0)
        off = length(hand - handle - np.array([0.05, 0.03, -0.01]))
        ready = hamacher(above, tolerance(off, threshold / 2.0, 0.5))
        left = np.pi / 2.0 + np.pi / 6.0 + self.angle
        opened = 0.2 * (self.angle < -np.pi / 90.0) + 0.8 * tolerance(left, 0.5, np.pi / 3.0)
        pull = (actions[:, 3].clip(-1.0, 1.0) + 1.0) / 2.0
        done = abs(seen[:, 4] - self.target[:, 0]) <= 0.08
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
        self.way = scene.constant("maxDist")  # how far to pull, in m
        self.handle_start = self.target.copy()
        self.handle_start[:, 1] += self.way

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        hand, handle = seen[:, :3], seen[:, 4:7]
        left = length(handle - self.target)
        opening = tolerance(left, 0.02, self.way)
        scale = np.array([3.0, 3.0, 1.0])
        margin = length((self.handle_start - self.fingers_start) * scale)
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


class ButtonPress(Reward):
    """``SawyerButtonPressEnvV3``."""

    axis: ClassVar[int] = 1  # along which the button moves
    near: ClassVar[float] = 0.05  # distance that counts as being there, in m
    reach: ClassVar[float] = 0.05  # distance within which pressing counts, in m
    weights: ClassVar[tuple[float, float]] = (2.0, 8.0)  # of being there and of pressing
    done: ClassVar[float] = 0.02  # what may be left of the way, in m
    kept: ClassVar[str] = "_obj_to_target_init"  # where the package has how far to press

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.way = scene.constant(self.kept)  # in m

    def _closed(self, opening: np.ndarray) -> np.ndarray:
        """Return what counts as a closed gripper, of its opening ``[B]``."""
        return np.maximum(opening, 0.0)

    def _parts(self, seen: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return distance from the button, what is left, and what both are worth, ``[B]``."""
        button = seen[:, 4:7]
        away = length(button - self.scene.fingers())
        left = abs(self.target[:, self.axis] - button[:, self.axis])
        there = tolerance(away, self.near, length(button - self.fingers_start))
        return away, left, there, tolerance(left, 0.005, self.way)

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        away, left, there, pressed = self._parts(seen)
        reward = self.weights[0] * hamacher(self._closed(seen[:, 3]), there)
        reward = reward + np.where(away <= self.reach, self.weights[1] * pressed, 0.0)
        return reward, left <= self.done


class ButtonPressTopdownWall(ButtonPress):
    """``SawyerButtonPressTopdownWallEnvV3``."""

    axis = 2
    near = 0.01
    reach = 0.03
    weights = (5.0, 5.0)
    done = 0.024


class ButtonPressTopdown(ButtonPressTopdownWall):
    """``SawyerButtonPressTopdownEnvV3``."""

    def _closed(self, opening: np.ndarray) -> np.ndarray:
        return 1.0 - opening


class ButtonPressWall(ButtonPress):
    """``SawyerButtonPressWallEnvV3``."""

    near = 0.01

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        away, left, there, pressed = self._parts(seen)
        coming = 2.0 * hamacher((1.0 - seen[:, 3]) / 2.0, there)
        pressing = 2.0 + 2.0 * (1.0 + seen[:, 3]) + 4.0 * pressed * pressed
        return np.where(away > 0.07, coming, pressing), left <= 0.03


class CoffeeButton(ButtonPress):
    """``SawyerCoffeeButtonEnvV3``."""

    kept = "max_dist"


class Slide(Reward):
    """A handle moved along one axis; the window is ``SawyerWindowOpenEnvV3``."""

    axis: ClassVar[int] = 0
    radius: ClassVar[float] = RADIUS
    gaussian: ClassVar[bool] = False
    kept: ClassVar[str] = "window_handle_pos_init"  # where the package has the handle's start

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.handle_start = scene.constant(self.kept)
        self.first = self.object_start  # where the way is measured from

    def _parts(self, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the reward, from 0 to 1, and what is left of the way, ``[B]``."""
        handle, near = seen[:, 4:7], 0.02
        left = abs(handle[:, self.axis] - self.target[:, self.axis])
        way = abs(self.first[:, self.axis] - self.target[:, self.axis])
        in_place = tolerance(left, self.radius, abs(way - self.radius))
        margin = abs(length(self.handle_start - self.fingers_start) - near)
        away = length(handle - self.scene.fingers())
        return hamacher(tolerance(away, near, margin, gaussian=self.gaussian), in_place), left

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        reward, left = self._parts(seen)
        return 10.0 * reward, left <= self.radius


class WindowClose(Slide):
    """``SawyerWindowCloseEnvV3``."""

    gaussian = True

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.first = self.handle_start


class HandlePress(Slide):
    """``SawyerHandlePressEnvV3``, ``SawyerHandlePressSideEnvV3``."""

    axis = 2
    radius = 0.02
    kept = "_handle_init_pos"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.first = self.handle_start

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        reward, left = self._parts(seen)
        done = left <= self.radius
        return 10.0 * np.where(done, 1.0, reward), done


class HandlePull(Reward):
    """``SawyerHandlePullEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        handle = seen[:, 4:7]
        left = abs(handle[:, 2] - self.target[:, 2])
        in_place = tolerance(left, RADIUS, abs(self.target[:, 2] - self.object_start[:, 2]))
        grasped = self.caging(handle, actions, radius=0.022, pad_threshold=0.05, xz_threshold=0.01)
        # y is compared with z, as in the package
        pulled = self.held(seen, 0.035) & (handle[:, 1] - 0.01 > self.object_start[:, 2])
        reward = hamacher(grasped, in_place) + np.where(pulled, 1.0 + 5.0 * in_place, 0.0)
        return np.where(left < RADIUS, 10.0, reward), left <= RADIUS


class HandlePullSide(Reward):
    """``SawyerHandlePullSideEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        handle = seen[:, 4:7]
        left = length(handle - self.target)
        in_place = tolerance(left, RADIUS, length(self.object_start - self.target))
        grasped = self.caging(handle, actions, radius=0.032, pad_threshold=0.06, xz_threshold=0.01)
        bonus = np.where(self.lifted(seen, 0.035), 1.0 + 5.0 * in_place, 0.0)
        reward = hamacher(grasped, in_place) + bonus
        return np.where(left < RADIUS, 10.0, reward), left <= 0.08


class HandInsert(Reward):
    """``SawyerHandInsertEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        block = seen[:, 4:7]
        left = length(block - self.target)
        in_place = tolerance(left, RADIUS, length(self.object_start - self.target))
        grasped = self.caging(block, actions, radius=0.015, pad_threshold=0.05, xz_threshold=0.005)
        bonus = np.where(self.held(seen, 0.02), 1.0 + 7.0 * in_place, 0.0)
        reward = hamacher(grasped, in_place) + bonus
        return np.where(left < RADIUS, 10.0, reward), left <= RADIUS


class PegUnplugSide(Reward):
    """``SawyerPegUnplugSideEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        plug = seen[:, 4:7]
        left = length(plug - self.target)
        in_place = tolerance(left, RADIUS, length(self.object_start - self.target))
        grasped = self.caging(
            plug, actions, radius=0.025, pad_threshold=0.05, xz_threshold=0.005, strength=0.8
        )
        out = (seen[:, 3] > 0.5) & (plug[:, 0] - self.object_start[:, 0] > 0.015)
        out &= length(plug - self.scene.fingers()) < 0.035
        reward = 2.0 * grasped + np.where(out, 1.0 + 5.0 * in_place, 0.0)
        return np.where(left <= RADIUS, 10.0, reward), left <= 0.07


class Faucet(Reward):
    """``SawyerFaucetCloseEnvV3``."""

    offset: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.radius = scene.constant("_target_radius")

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        handle, near = seen[:, 4:7] + np.array(self.offset), 0.01
        left = length(handle - self.target)
        margin = abs(length(self.object_start - self.target) - self.radius)
        in_place = tolerance(left, self.radius, margin)
        margin = abs(length(self.object_start - self.fingers_start) - near)
        reach = tolerance(length(handle - self.scene.fingers()), near, margin, gaussian=True)
        reward = 4.0 * reach + 6.0 * in_place
        return np.where(left <= self.radius, 10.0, reward), left <= 0.07


class FaucetOpen(Faucet):
    """``SawyerFaucetOpenEnvV3``."""

    offset = (-0.04, 0.0, 0.03)


class DialTurn(Reward):
    """``SawyerDialTurnEnvV3``."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.push_start = scene.constant("dial_push_position")

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        dial, near, radius = seen[:, 4:7], 0.005, 0.07
        left = length(dial - self.target)
        margin = abs(length(self.push_start - self.target) - radius)
        in_place = tolerance(left, radius, margin)
        away = length(dial + np.array([0.05, 0.02, 0.09]) - self.scene.fingers())
        margin = abs(length(self.push_start - self.fingers_start) - near)
        reach = hamacher(tolerance(away, near, margin, gaussian=True), effort(actions))
        return 10.0 * hamacher(reach, in_place), left <= radius


class CoffeePush(Reward):
    """``SawyerCoffeePushEnvV3``, ``SawyerCoffeePullEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        mug, scale = seen[:, 4:7], np.array([2.0, 2.0, 1.0])
        left = length((mug - self.target) * scale)
        in_place = tolerance(left, RADIUS, length((self.object_start - self.target) * scale))
        grasped = self.caging(
            mug,
            actions,
            radius=0.02,
            pad_threshold=0.05,
            xz_threshold=0.05,
            reach=0.04,
            strength=0.7,
        )
        bonus = np.where(self.held(seen, 0.04), 1.0 + 5.0 * in_place, 0.0)
        reward = hamacher(grasped, in_place) + bonus
        return np.where(left < RADIUS, 10.0, reward), length(mug - self.target) <= 0.07


class PlateSlide(Reward):
    """``SawyerPlateSlideEnvV3``."""

    margin: ClassVar[float] = 0.0  # what margins lack of the distances, in m

    def _parts(self, seen: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what is left, the distance from the plate, and what both are worth, ``[B]``."""
        plate = seen[:, 4:7]
        left, away = length(plate - self.target), length(plate - self.scene.fingers())
        way = length(self.object_start - self.target) - self.margin
        reach = length(self.object_start - self.fingers_start) - self.margin
        return left, away, tolerance(left, RADIUS, way), tolerance(away, RADIUS, reach)

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        left, _, in_place, reached = self._parts(seen)
        return np.where(left < RADIUS, 10.0, 8.0 * hamacher(reached, in_place)), left <= 0.07


class PlateSlideSide(PlateSlide):
    """``SawyerPlateSlideSideEnvV3``, ``...BackEnvV3``, ``...BackSideEnvV3``."""

    margin = RADIUS

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        left, away, in_place, reached = self._parts(seen)
        inside = (self.scene.fingers()[:, 2] <= 0.03) & (away < 0.07)
        reward = np.where(inside, 2.0 + 7.0 * in_place, 1.5 * reached)
        return np.where(left < RADIUS, 10.0, reward), left <= 0.07


class Soccer(Reward):
    """``SawyerSoccerEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        ball, scale, radius = seen[:, 4:7], np.array([3.0, 1.0, 1.0]), 0.07
        left = length((ball - self.target) * scale)
        in_place = tolerance(left, radius, length((ball - self.object_start) * scale))
        line = self.target[:, 1] - 0.1
        beside = (ball[:, 1] > line) & (abs(ball[:, 0] - self.target[:, 0]) > 0.1)
        less = in_place - 2.0 * (ball[:, 1] - line) / (1.0 - line)
        in_place = np.where(beside, less.clip(0.0, 1.0), in_place)
        reward = 3.0 * self.gripped(ball, 0.013, 0.01, 0.005) + 6.5 * in_place
        return np.where(left < radius, 10.0, reward), length(ball - self.target) <= 0.07


class PushBack(Reward):
    """``SawyerPushBackEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        puck, opened = seen[:, 4:7], seen[:, 3]
        left, way = length(puck - self.target), length(self.object_start - self.target)
        in_place = tolerance(left, RADIUS, way)
        reward = hamacher(self.gripped(puck, 0.007, 0.003, 0.01), in_place)
        moved = self.held(seen, 0.01) & (opened < 0.55) & (way - left > 0.01)
        reward = reward + np.where(moved, 1.0 + 5.0 * in_place, 0.0)
        return np.where(left < RADIUS, 10.0, reward), left <= 0.07


class PushWall(Reward):
    """``SawyerPushWallEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        puck, scale = seen[:, 4:7], np.array([3.0, 1.0, 1.0])
        beside = np.tile([-0.05, 0.77, 0.0], (len(puck), 1))  # the wall
        beside[:, 2] = puck[:, 2]
        left = length(puck - self.target)
        around = tolerance(
            length((puck - beside) * scale), RADIUS, length((self.object_start - beside) * scale)
        )
        in_place = tolerance(left, RADIUS, length(self.object_start - self.target))
        grasped = self.caging(puck, actions, radius=0.015, pad_threshold=0.05, xz_threshold=0.005)
        bonus = np.where(puck[:, 1] > 0.75, 5.0 + 3.0 * in_place, 1.0 + 4.0 * around)
        reward = 2.0 * grasped + np.where(self.held(seen, 0.02), bonus, 0.0)
        return np.where(left < RADIUS, 10.0, reward), left <= 0.07


class PickPlaceWall(Reward):
    """``SawyerPickPlaceWallEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        puck, scale = seen[:, 4:7], np.array([1.0, 1.0, 3.0])
        above = self.target.copy()
        above[:, 1:] = 0.77, 0.25  # the wall
        left = length(puck - self.target)
        over = tolerance(
            length((puck - above) * scale), RADIUS, length((self.object_start - above) * scale)
        )
        in_place = tolerance(left, RADIUS, length(self.object_start - self.target))
        grasped = self.caging(
            puck, actions, radius=0.015, pad_threshold=0.05, xz_threshold=0.005, dense=False
        )
        lifted = self.held(seen, 0.02) & (puck[:, 2] - 0.015 > self.object_start[:, 2])
        bonus = np.where(puck[:, 1] > 0.75, 5.0 + 3.0 * in_place, 1.0 + 4.0 * over)
        reward = hamacher(grasped, over) + np.where(lifted, bonus, 0.0)
        return np.where(left < RADIUS, 10.0, reward), left <= 0.07


class PickOutOfHole(Reward):
    """``SawyerPickOutOfHoleEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        puck, fingers = seen[:, 4:7], self.scene.fingers()
        left = length(puck - self.target)
        away = length(fingers[:, :2] - self.object_start[:, :2])
        _, below = funnel(fingers[:, 2], away, 0.015, 0.15, 0.03)
        above = tolerance(below, 0.01, 0.02)
        grasped = self.caging(
            puck, actions, radius=0.015, pad_threshold=0.02, xz_threshold=0.03, strength=0.1
        )
        in_place = tolerance(left, 0.02, length(self.object_start - self.target))
        out = (length(puck - fingers) < 0.04) & (puck[:, 2] - 0.02 > self.object_start[:, 2])
        bonus = np.where(out & (seen[:, 3] >= 0.33), 1.0 + 5.0 * hamacher(in_place, above), 0.0)
        reward = hamacher(grasped, in_place) + bonus
        return np.where(left < RADIUS, 10.0, reward), left <= 0.07


class DoorUnlock(Reward):
    """``SawyerDoorUnlockEnvV3``."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.way = scene.constant("_lock_length")

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        hand, lock = seen[:, :3], seen[:, 4:7]
        scale, offset = np.array([0.25, 1.0, 0.5]), np.array([0.0, 0.055, 0.07])
        margin = length((self.fingers_start + offset - self.object_start) * scale)
        ready = tolerance(length((hand + offset - lock) * scale), 0.02, margin)
        left = abs(self.target[:, 0] - lock[:, 0])
        return 2.0 * ready + 8.0 * tolerance(left, 0.005, self.way), left <= 0.02


class DoorLock(Reward):
    """``SawyerDoorLockEnvV3``; what it keeps as a pad's first place is the present one."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.way = scene.constant("_lock_length")

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        lock = seen[:, 4:7]
        away = length((lock - self.scene.left_pad) * np.array([0.25, 1.0, 0.5]))
        left = abs(self.target[:, 2] - lock[:, 2])
        near = hamacher(np.maximum(seen[:, 3], 0.0), tolerance(away, 0.01, away))
        return 2.0 * near + 8.0 * tolerance(left, 0.005, self.way), left <= 0.02


class BoxClose(Reward):
    """``SawyerBoxCloseEnvV3``."""

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        hand, lid = seen[:, :3], seen[:, 4:7] + np.array([0.0, 0.0, 0.02])
        floor, below = funnel(hand[:, 2], length(hand[:, :2] - lid[:, :2]), 0.04, 0.4, 0.02)
        above = tolerance(below, 0.01, floor / 2.0)
        ready = hamacher(above, tolerance(length(hand - lid), 0.02, 0.5))
        off = length((self.target - lid) * np.array([1.0, 1.0, 3.0]))
        lifted = 0.2 * (lid[:, 2] > 0.04) + 0.8 * tolerance(off, 0.05, 0.25)
        pull = (actions[:, 3].clip(-1.0, 1.0) + 1.0) / 2.0
        done = length(seen[:, 4:7] - self.target) < 0.08
        reward = np.where(done, 10.0, 2.0 * hamacher(pull, ready) + 8.0 * lifted)
        return reward * upright(seen, (0.707, 0.0, 0.0, 0.707), 0.2), done


class Wrench(Reward):
    """A tool with a long handle, grasped anywhere along it: three classes have it."""

    half_handle: ClassVar[float] = 0.01  # in m
    ideal: ClassVar[tuple[float, float, float, float]] = (0.707, 0.0, 0.0, 0.707)
    reach: ClassVar[float | None] = None

    def _held(self, seen: np.ndarray, actions: np.ndarray, in_place: np.ndarray) -> np.ndarray:
        """Return the reward as long as the task is not done, ``[B]``."""
        tool = seen[:, 4:7].copy()
        along = abs(tool[:, 0] - seen[:, 0]) < self.half_handle
        tool[:, 0] = np.where(along, seen[:, 0], tool[:, 0])
        grasped = self.caging(
            tool, actions, radius=0.015, pad_threshold=0.02, xz_threshold=0.01, reach=self.reach
        )
        return (2.0 * grasped + 6.0 * in_place) * upright(seen, self.ideal, 0.4)


class Hammer(Wrench):
    """``SawyerHammerEnvV3``."""

    half_handle = 0.07
    ideal = (1.0, 0.0, 0.0, 0.0)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.nail = scene.reader.angle("NailSlideJoint")

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        head = seen[:, 4:7] + np.array([0.16, 0.06, 0.0])
        on_nail = tolerance(length(self.target - head), 0.02, 0.2)
        reward = self._held(seen, actions, 0.1 * (head[:, 2] > 0.02) + 0.9 * on_nail)
        done = self.nail > 0.09
        return np.where(done & (reward > 5.0), 10.0, reward), done


class Disassemble(Wrench):
    """``SawyerNutDisassembleEnvV3``."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.nut = scene.reader.position("site", "RoundNut")

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        off = length(self.target + np.array([0.0, 0.0, 0.1]) - self.nut)
        in_place = 0.1 * (self.nut[:, 2] > 0.02) + 0.9 * tolerance(off, 0.02, 0.2)
        done = seen[:, 6] > self.target[:, 2]
        return np.where(done, 10.0, self._held(seen, actions, in_place)), done


class Assembly(Disassemble):
    """``SawyerNutAssemblyEnvV3``."""

    reach = 0.01

    def __call__(self, seen: np.ndarray, actions: np.ndarray) -> Scores:
        """Return the scores ``[B]``."""
        error = self.target - self.nut
        away = length(error[:, :2])
        done = (away < 0.02) & (error[:, 2] > 0.0)
        threshold = np.where(done, 0.02, 0.01)
        height, _ = funnel(self.nut[:, 2], away, 0.02, 0.2, threshold)
        error[:, 2] = height - self.nut[:, 2]
        off = length(error * np.array([1.0, 1.0, 3.0]))
        lifted = (self.nut[:, 2] > 0.02) | (away < threshold)
        in_place = 0.1 * lifted + 0.9 * tolerance(off, 0.02, 0.4)
        return np.where(done, 10.0, self._held(seen, actions, in_place)), done


class LeverPull(Reward):
    """``SawyerLeverPullEnvV3``."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.lever_start = scene.constant("_lever_pos_init")
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


# By name of the task. The others, whose scores depend on contacts or on what happened before in the
# episode, are scored by the package itself, one episode after the other.
REWARDS: dict[str, type[Reward]] = {
    "assembly": Assembly,
    "basketball": Basketball,
    "box-close": BoxClose,
    "button-press": ButtonPress,
    "button-press-topdown": ButtonPressTopdown,
    "button-press-topdown-wall": ButtonPressTopdownWall,
    "button-press-wall": ButtonPressWall,
    "coffee-button": CoffeeButton,
    "coffee-pull": CoffeePush,
    "coffee-push": CoffeePush,
    "dial-turn": DialTurn,
    "disassemble": Disassemble,
    "door-close": DoorClose,
    "door-lock": DoorLock,
    "door-open": DoorOpen,
    "door-unlock": DoorUnlock,
    "drawer-close": DrawerClose,
    "drawer-open": DrawerOpen,
    "faucet-close": Faucet,
    "faucet-open": FaucetOpen,
    "hammer": Hammer,
    "hand-insert": HandInsert,
    "handle-press": HandlePress,
    "handle-press-side": HandlePress,
    "handle-pull": HandlePull,
    "handle-pull-side": HandlePullSide,
    "lever-pull": LeverPull,
    "peg-insert-side": PegInsertSide,
    "peg-unplug-side": PegUnplugSide,
    "pick-out-of-hole": PickOutOfHole,
    "pick-place": PickPlace,
    "pick-place-wall": PickPlaceWall,
    "plate-slide": PlateSlide,
    "plate-slide-back": PlateSlideSide,
    "plate-slide-back-side": PlateSlideSide,
    "plate-slide-side": PlateSlideSide,
    "push": Push,
    "push-back": PushBack,
    "push-wall": PushWall,
    "reach": Reach,
    "reach-wall": Reach,
    "shelf-place": ShelfPlace,
    "soccer": Soccer,
    "sweep": Sweep,
    "sweep-into": SweepInto,
    "window-close": WindowClose,
    "window-open": Slide,
}
