# Images from one checkout: `gateway` (no torch), `worker`, and `bundles` with the starters, which the Helm chart copies into workers.
#   docker build --target gateway -t opsin-gateway .
#   docker build --target worker -t opsin-worker --build-arg TORCH="torch==2.13.0+cpu" .
#   docker build --target worker -t opsin-worker-gpu --build-arg EXTRA=gpu .
#   docker build --target bundles -t opsin-bundles .

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/venv/bin:$PATH
WORKDIR /opsin
# An unprivileged user must reach the interpreter wherever the base image keeps it.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp opsin \
 && folder=$(python -c 'import sys; print(sys.base_prefix)') \
 && while [ "$folder" != / ]; do chmod a+x "$folder"; folder=$(dirname "$folder"); done

FROM base AS code
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY opsin opsin
COPY server server
COPY models models
COPY kernels kernels

# The installation is editable, as in a checkout: it needs no code, so these layers last until pyproject.toml changes.
FROM base AS gateway-venv
RUN python -m venv /venv
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY opsin/__init__.py opsin/
RUN pip install --no-cache-dir --editable '.[gateway,otel]'

FROM base AS worker-venv
# The requirement for torch; name a CPU build, and an index that has it, where workers have no GPU. Large, so in a layer of its own.
ARG TORCH=torch
# `gpu` in the place of `server` brings the ONNX Runtime that uses GPUs, of the same CUDA as torch (pyproject.toml has the pins).
ARG EXTRA=server
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /venv && pip install --no-cache-dir "$TORCH"
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY opsin/__init__.py opsin/
RUN pip install --no-cache-dir --editable ".[$EXTRA,otel]"

# A release adds labels of its version, commit and repository (.github/workflows/release.yml).
FROM base AS gateway
LABEL org.opencontainers.image.title="Opsin gateway" \
      org.opencontainers.image.description="HTTP gateway of Opsin, a serving engine for vision models of the masked-autoencoder family" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=gateway-venv /venv /venv
COPY --from=code /opsin ./
USER opsin
ENV OPSIN_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
CMD ["opsin", "gateway"]

FROM base AS bundles
LABEL org.opencontainers.image.title="Opsin bundles" \
      org.opencontainers.image.description="Starter bundles of Opsin, to be copied from /bundles; each has its licence in bundle.json" \
      org.opencontainers.image.licenses="Apache-2.0 AND MIT"
COPY bundles /bundles
USER opsin

FROM base AS worker
LABEL org.opencontainers.image.title="Opsin worker" \
      org.opencontainers.image.description="Inference worker of Opsin, a serving engine for vision models of the masked-autoencoder family" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=worker-venv /venv /venv
# Triton, which comes with the GPU builds of torch, compiles at run time; base images have Python's headers but no C compiler.
RUN if python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("triton") is None)'; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=code /opsin ./
# A volume that is mounted there for the first time takes its owner over.
RUN install --directory --owner opsin /cache
USER opsin
# Prometheus comes from another container; bundles are mounted, and are all that is served.
ENV OPSIN_METRICS_HOST=0.0.0.0 OPSIN_BUNDLES=/bundles OPSIN_STARTERS=false OPSIN_CACHE=/cache
EXPOSE 9101
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9101/metrics', timeout=4)"]
CMD ["opsin", "worker"]
