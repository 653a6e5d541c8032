/* The physics of recorded episodes and nothing else: the floor of a rollout.

   physics MODEL.mjb EPISODES steps the episodes of a file in lockstep and prints the seconds that
   took, then the sum of all final positions, by which one sees that the physics was the same. The
   file holds doubles in native order: episodes B, environment steps T, physics steps per environment
   step; then qpos [B, nq], qvel [B, nv] and controls [T, B, nu], NaN after the end of an episode. */

#include <math.h>
#include <mujoco/mujoco.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void need(int ok, const char *what) {
  if (!ok) {
    fprintf(stderr, "physics: %s\n", what);
    exit(2);
  }
}

static double *doubles(FILE *file, size_t n) {
  double *values = malloc(n * sizeof *values);
  need(values && fread(values, sizeof *values, n, file) == n, "the file of episodes is too short");
  return values;
}

int main(int argc, char **argv) {
  need(argc == 3, "usage: physics MODEL.mjb EPISODES");
  mjModel *model = mj_loadModel(argv[1], NULL);
  need(model != NULL, "the model cannot be read");
  FILE *file = fopen(argv[2], "rb");
  need(file != NULL, "the file of episodes cannot be read");
  double *sizes = doubles(file, 3);
  int episodes = sizes[0], steps = sizes[1], substeps = sizes[2];
  double *qpos = doubles(file, (size_t)episodes * model->nq);
  double *qvel = doubles(file, (size_t)episodes * model->nv);
  double *controls = doubles(file, (size_t)steps * episodes * model->nu);
  fclose(file);

  mjData **data = malloc(episodes * sizeof *data);
  need(data != NULL, "no memory");
  for (int i = 0; i < episodes; i++) {
    need((data[i] = mj_makeData(model)) != NULL, "no memory");
    memcpy(data[i]->qpos, qpos + i * model->nq, model->nq * sizeof(double));
    memcpy(data[i]->qvel, qvel + i * model->nv, model->nv * sizeof(double));
  }

  double began = now();
  const double *control = controls;
  for (int step = 0; step < steps; step++)
    for (int i = 0; i < episodes; i++, control += model->nu) {
      if (isnan(control[0])) continue;
      memcpy(data[i]->ctrl, control, model->nu * sizeof(double));
      for (int k = 0; k < substeps; k++) mj_step(model, data[i]);
    }
  printf("%.9f\n", now() - began);

  double sum = 0;
  for (int i = 0; i < episodes; i++)
    for (int j = 0; j < model->nq; j++) sum += data[i]->qpos[j];
  printf("%.17g\n", sum);
  return 0;
}
