# The same image runs as the web function, as a worker (python -m function.sweep --every 5) and as a cron job
# (python -m function.sweep).
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
COPY requirements.txt .
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.txt
COPY function /app/function
COPY shared /app/shared
RUN /opt/venv/bin/python -m compileall -q /app

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
# XDG_RUNTIME_DIR: gunicorn opens a control socket and would look for a home. THREADS: as many as the platform's concurrency.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    XDG_RUNTIME_DIR=/tmp \
    FUNCTION_TARGET=dispatch \
    FUNCTION_SOURCE=function/main.py \
    THREADS=16
USER 10001:10001
CMD ["functions-framework"]
