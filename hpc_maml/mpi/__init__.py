"""Everything that talks MPI: start and end, communicators, messages, reductions."""
