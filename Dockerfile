# Targets: runtime (the default of compose.yaml), gpu, test. TORCH_INDEX chooses the torch build: .../whl/cpu or .../whl/cu130.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /orch
RUN python3 -m venv /venv && pip install "torch>=2.11,<2.14" --index-url ${TORCH_INDEX}
# The packages before the sources: a change of code installs nothing anew.
COPY pyproject.toml README.md ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/packages.txt && pip install -r /tmp/packages.txt
COPY orchestrator orchestrator
COPY worker worker
COPY migrations migrations
COPY examples examples
RUN pip install --no-deps --editable .

FROM build AS build-test
RUN pip install --editable ".[dev]"

FROM ${PYTHON_IMAGE} AS bare
RUN useradd --uid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin orch \
    && install -d -m 0700 -o orch -g orch /data /mlflow
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /orch

# For tests: a database, a broker and workers of its own making, as the same user.
FROM bare AS test
COPY --from=build-test /venv /venv
COPY --from=build-test --chown=orch:orch /orch /orch
COPY --chown=orch:orch benchmarks benchmarks
COPY --chown=orch:orch tests tests
USER 10001:10001
ENTRYPOINT ["python", "-m", "pytest", "-p", "no:cacheprovider"]
CMD ["tests/integration"]

FROM bare AS whole
COPY --from=build /venv /venv
COPY --from=build /orch /orch
ENTRYPOINT ["orch"]

# Triton compiles the launchers of its kernels with the machine's own compiler.
FROM whole AS gpu
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER 10001:10001

FROM whole AS runtime
USER 10001:10001
