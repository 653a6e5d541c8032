# What every job needs before python can start: uncomment and change what your site calls for. Read by
# launch.sh in each job. As it is, a job has the environment that it was submitted from.
#
# module purge && module load python openmpi      # the MPI that mpi4py uses
# . "$HOME/hpc_maml/.venv/bin/activate"           # an environment of venv or of uv
# . "$HOME/miniforge3/etc/profile.d/conda.sh" && conda activate hpc_maml
# export HDF5_USE_FILE_LOCKING=FALSE              # where a file system has no locks
