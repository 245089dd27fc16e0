# One image for all daemons; which one runs is the command. Not root; data is a volume.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements-dev.lock pyproject.toml README.md ./
COPY tierstore tierstore
COPY metadata metadata
COPY objectd objectd
# The lock file gives the versions; only what the wheel declares (with PostgreSQL) is installed.
RUN python -m venv /opt/tierstore \
    && /opt/tierstore/bin/pip install --no-cache-dir -c requirements-dev.lock ".[postgres]"

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /data tierstore && install -d -o tierstore -g tierstore -m 0700 /data /data/ssd /data/hdd
COPY --from=build /opt/tierstore /opt/tierstore
ENV PATH=/opt/tierstore/bin:$PATH PYTHONUNBUFFERED=1
USER tierstore
VOLUME /data
WORKDIR /data
EXPOSE 7400 7411 7480
ENTRYPOINT ["tierstore"]
CMD ["gateway", "serve"]
