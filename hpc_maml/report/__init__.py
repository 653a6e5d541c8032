"""Pictures and tables of finished or running runs; reads run folders, imports no MPI, no torch."""
