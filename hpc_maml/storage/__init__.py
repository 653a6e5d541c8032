"""The rollouts of a run in HDF5: written by its observers, read with nothing but NumPy."""
