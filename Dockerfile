# docker build -t unimoco .                                                              CPU
# docker build -t unimoco --build-arg TORCH= .                                           GPU: torch brings its own CUDA
# docker run --rm --shm-size 8g -v "$PWD/runs:/suite/runs" unimoco bash pretrain/run.sh
ARG BASE=python:3.12-slim-bookworm
# hadolint ignore=DL3006
FROM ${BASE}
ARG TORCH=cpu
ARG UNIMOCO_EXTRAS=all
ENV UNIMOCO_ENV=/opt/unimoco UNIMOCO_EXTRAS=${UNIMOCO_EXTRAS} TORCH=${TORCH} PATH=/opt/unimoco/bin:${PATH} PYTHONUNBUFFERED=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /suite
COPY . .
RUN bash setup.sh
CMD ["bash", "pretrain/run.sh"]
