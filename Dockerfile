# d2v_plugin for NVIDIA GPUs. Build in the root of the repository, and run where the host has NVIDIA's driver (525 or newer) and its
# container toolkit:
#   docker build -t d2v .
#   docker run --rm --gpus all --shm-size 1g d2v doctor
#   docker run --rm --gpus all --shm-size 1g -v "$PWD:/work" d2v recipe train --config-file demo/digits.yaml out/digits

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir 'build>=1.2' && python -m build --wheel --outdir /wheels

FROM python:3.11-slim-bookworm
# A compiler for torch.compile, whose kernels are started by small programs in C. CUDA 12.8 itself comes with the wheels of PyTorch.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels pip install --no-cache-dir /wheels/*.whl
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility PYTHONUNBUFFERED=1
WORKDIR /work
ENTRYPOINT ["fairseq2"]
CMD ["--help"]
