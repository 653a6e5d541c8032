"""Draw the returns of a run before and after adaptation: learning_curve.py RUN FILE.

Needs matplotlib. FILE ends in .svg, .png or .pdf.
"""

import sys
from pathlib import Path

import h5py
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import yaml


def main(run: Path, picture: Path) -> None:
    """Draw the mean over tasks and, as a band, the middle half of the tasks."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    mpl.rcParams["svg.hashsalt"] = "hpc_maml"  # the same picture gives the same file
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    with h5py.File(run / "metrics.h5") as file:
        # blue and orange of Okabe and Ito, told apart by everyone
        curves = (("pre_update", "before", "#0072B2"), ("post_update", "after", "#D55E00"))
        for phase, words, colour in curves:
            returns = file[f"tasks/{phase}_return"][...]
            iterations = np.arange(1, len(returns) + 1)
            low, high = np.quantile(returns, [0.25, 0.75], axis=1)
            label = f"{words} adaptation"
            axes.plot(iterations, returns.mean(1), color=colour, label=label, linewidth=1.8)
            axes.fill_between(iterations, low, high, color=colour, alpha=0.2, linewidth=0)
        top = file["tasks/post_update_return"][...].max()
    steady = -100 if config["env"]["name"] == "navigation" else None
    axes.set_ylim(bottom=steady, top=max(0, top) if steady else None)
    axes.set_xlim(1, len(iterations))
    axes.set_xlabel("iteration")
    axes.set_ylabel("return of an episode")
    axes.set_title(
        f"{config['env']['name']}, seed {config['seed']}: mean over "
        f"{config['meta_batch_size']} tasks, band: middle half of the tasks",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
