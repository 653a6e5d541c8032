/* Blocking all-reduces of float sums and nothing else: the floor of a reduction.

   mpirun -np N allreduce BYTES ROUNDS prints the seconds of each, from the slowest rank. */

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (argc != 3) {
    if (rank == 0) fprintf(stderr, "usage: allreduce BYTES ROUNDS\n");
    MPI_Abort(MPI_COMM_WORLD, 2);
  }
  int n = atoi(argv[1]) / sizeof(float), rounds = atoi(argv[2]);
  float *terms = calloc(n, sizeof *terms), *sums = calloc(n, sizeof *sums);
  for (int round = 0; round < rounds; round++) {
    MPI_Barrier(MPI_COMM_WORLD);
    double began = MPI_Wtime();
    MPI_Allreduce(terms, sums, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    double seconds = MPI_Wtime() - began, slowest;
    MPI_Reduce(&seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("%.9f\n", slowest);
  }
  free(terms);
  free(sums);
  MPI_Finalize();
  return 0;
}
