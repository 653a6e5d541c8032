# The image holds the program with an MPI and all it needs, and runs as an ordinary user.
#
#   docker build -t hpc_maml .
#   mkdir -p runs
#   docker run --rm -v "$PWD/runs:/work/runs" --user "$(id -u):$(id -g)" hpc_maml \
#       mpirun -np 4 python -m hpc_maml --config configs/navigation.yaml
#
# With CUDA (and docker run --gpus all):
#
#   docker build -t hpc_maml:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ENV PATH=/opt/hpc_maml/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# By itself and first: the largest layer, and the one that changes least.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/hpc_maml && pip install --index-url "$TORCH_INDEX" 'torch>=2.6,<2.14'

COPY pyproject.toml setup.py README.md LICENSE /src/
COPY hpc_maml /src/hpc_maml
COPY jobs /src/jobs
COPY configs /src/configs
RUN pip install '/src[mpich]' && rm -rf /src

COPY configs /work/configs
RUN useradd --create-home maml && mkdir /work/runs && chown -R maml /work
USER maml
WORKDIR /work
# For docker run --user, whose user has no home here.
ENV HOME=/tmp
CMD ["mpirun", "-np", "4", "python", "-m", "hpc_maml"]
