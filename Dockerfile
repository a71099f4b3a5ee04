# The gateway as an image: docker build -t illm . && docker run --init -p 127.0.0.1:8000:8000 illm
# Settings are looked for in /app/configs/illm.yaml and in ILLM_* variables (docs/docker.md). It launches no engines:
# those have images of their own.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
# Another package index than PyPI, where it is given; it stays in this stage.
ARG PIP_INDEX_URL
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# First what it needs, which seldom changes. The environment gets no pip: nothing is installed in the last stage.
RUN python -m venv --without-pip /opt/illm \
 && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > needs.txt \
 && pip --python /opt/illm/bin/python install --no-cache-dir --constraint constraints.txt --requirement needs.txt
# The hot path is translated to C (docs/data-path.md has what that saves). COMPILE=0 leaves it as it is, and needs no compiler.
ARG COMPILE=1
RUN [ "$COMPILE" != 1 ] || { \
      apt-get -qq update && apt-get -qq install --yes --no-install-recommends gcc libc6-dev \
      && python -m venv /build && /build/bin/pip install --no-cache-dir --constraint constraints.txt --requirement needs.txt mypy 'setuptools>=77' types-PyYAML; }
COPY README.md LICENSE setup.py ./
COPY proxy proxy
COPY launchers launchers
RUN if [ "$COMPILE" = 1 ]; then \
      COMPILE=1 /build/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheel . ; \
    else pip wheel --no-cache-dir --no-deps --wheel-dir /wheel . ; fi \
 && pip --python /opt/illm/bin/python install --no-cache-dir --no-deps /wheel/*.whl

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="illm" \
      org.opencontainers.image.description="One OpenAI-compatible endpoint in front of every local inference server." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin illm
COPY --from=build /opt/illm /opt/illm
ENV PATH=/opt/illm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ILLM_HOST=0.0.0.0 \
    ILLM_PORT=8000
WORKDIR /app
# By number, so that Kubernetes can see that it isn't root.
USER 10001:10001
EXPOSE 8000
# Python, as there is no curl; http.client, as urllib would ask a proxy. 0.0.0.0 leads to this machine too.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-I", "-c", "\
import http.client, os, sys; \
there = http.client.HTTPConnection(os.environ['ILLM_HOST'], int(os.environ['ILLM_PORT']), timeout=4); \
there.request('GET', '/livez'); \
sys.exit(there.getresponse().status != 200)"]
ENTRYPOINT ["illm"]
CMD ["serve"]
