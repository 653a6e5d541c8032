"""An environment as slow as a test needs it: jobs that are disturbed must last on any machine."""

import time
from pathlib import Path

from hpc_maml.envs.navigation import Navigation

PACE = Path("pace")  # while this file is in the current folder, each reset takes SECONDS
SECONDS = 0.2


class PacedNavigation(Navigation):
    """Navigation; each phase of an iteration is one reset or several."""

    def reset(self, **options):
        if PACE.exists():
            time.sleep(SECONDS)
        return super().reset(**options)
