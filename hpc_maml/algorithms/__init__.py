"""The algorithms; they know no MPI."""
