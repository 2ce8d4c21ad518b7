# One image for every role; `storebus` is its entry point.
FROM python:3.13-slim-bookworm

# qemu's tools and libnbd are the KVM agent's.
RUN apt-get update \
 && apt-get install -y --no-install-recommends qemu-utils qemu-system-common libnbd0 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/storebus --create-home storebus

WORKDIR /opt/storebus
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schema schema
COPY bus bus
COPY handlers handlers
COPY agents agents
COPY api api
RUN pip install --no-cache-dir -c constraints.txt ".[s3,swift,kvm]"

USER storebus
ENV STOREBUS_DATA_DIR=/var/lib/storebus PYTHONUNBUFFERED=1
VOLUME /var/lib/storebus
STOPSIGNAL SIGTERM
ENTRYPOINT ["storebus"]
CMD ["--help"]
