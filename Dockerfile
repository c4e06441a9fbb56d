# One image, three ways to run it: the web function (as it stands), a worker (python -m function.sweep --every 5) and a cron
# job (python -m function.sweep). It writes nowhere but in /tmp. `make image-check` builds and tries it without a Docker engine.
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
COPY requirements.txt .
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.txt
COPY function /app/function
COPY shared /app/shared
# The checkout's umask may have been a strict one. unchecked-hash: the bytecode holds whatever a builder does to the files' times.
RUN chmod -R u=rwX,go=rX /app \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /app

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
# PYTHONTZPATH: the zones of the locked tzdata, not of whatever the base image has. XDG_RUNTIME_DIR: gunicorn opens a control
# socket and would look for a home. THREADS: as many as the platform's concurrency.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONTZPATH= \
    XDG_RUNTIME_DIR=/tmp \
    FUNCTION_TARGET=dispatch \
    FUNCTION_SOURCE=function/main.py \
    THREADS=16
USER 10001:10001
CMD ["functions-framework"]
