# TORCH_INDEX chooses the torch build: .../whl/cpu (compose's default) or .../whl/cu130 for GPUs.
ARG PYTHON_IMAGE=python:3.11-slim
FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /orch
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
RUN pip install --no-cache-dir "torch>=2.11,<2.14" --index-url ${TORCH_INDEX}
COPY pyproject.toml README.md ./
COPY orchestrator orchestrator
COPY worker worker
COPY migrations migrations
RUN pip install --no-cache-dir --editable .

FROM ${PYTHON_IMAGE}
COPY --from=build /venv /venv
COPY . /orch
WORKDIR /orch
RUN mkdir -p /data && chown 10001:10001 /data
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/data
USER 10001:10001
ENTRYPOINT ["orch"]
