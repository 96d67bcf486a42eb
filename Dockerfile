# docker build . -t policy_server
# docker run --shm-size=16GB -p 8000:8000 -p 8080:8080 -p 8256:8256 policy_server
#
# docs/deployment-docker.md has the rest: your own policy, a read-only root.

FROM python:3.11-slim-bookworm AS build

# strip comes from binutils.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils=2.40-* \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /build
COPY deploy/image-requirements.txt ./
# `make lock` has pinned each package, with the hashes of its files.
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --require-hashes --requirement image-requirements.txt
# What no server reads: C++ headers, Java, compilers, tests, debugging symbols and pip itself.
RUN packages="$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && rm -rf "$packages/tensorflow/include" "$packages/clang" "$packages/ray/jars" \
        "$packages/ray/rllib" \
    && find "$packages" -type d -name tests -prune -exec rm -rf {} + \
    && strip --strip-unneeded "$packages"/tensorflow/libtensorflow*.so.* \
        "$packages/ray/_raylet.so" "$packages/ray/core/src/ray/gcs/gcs_server" \
        "$packages/ray/core/src/ray/raylet/raylet" \
    && /opt/venv/bin/python -m pip uninstall --yes pip

COPY app.py generate.py LICENSE deploy/place-policy.sh /opt/policy-server/
COPY policy_server /opt/policy-server/policy_server
COPY examples /opt/policy-server/examples
RUN /opt/venv/bin/python -m compileall -q /opt/policy-server


# The bill of materials: which packages the image has, their licenses and what needs what.
FROM build AS materials

COPY deploy/sbom-requirements.txt ./
RUN python3 -m venv /opt/sbom \
    && /opt/sbom/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --require-hashes --requirement sbom-requirements.txt \
    && /opt/sbom/bin/cyclonedx-py environment --output-reproducible --validate \
        --output-file /opt/sbom.cdx.json /opt/venv


FROM python:3.11-slim-bookworm

ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Policy Server" \
      org.opencontainers.image.description="A trained reinforcement-learning policy behind a URL" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# tini takes in the processes that Ray leaves when one of its own dies, and passes signals on.
# The profile is for login shells, in which KubeRay starts Ray; they forget PATH.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 policy \
    && useradd --uid 10001 --gid policy --no-create-home --home-dir /tmp policy \
    && echo "PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/policy-server.sh \
    && python -m pip uninstall --yes pip setuptools wheel \
    && rm -rf /usr/local/lib/python3.11/ensurepip

COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/policy-server /opt/policy-server
COPY --from=materials /opt/sbom.cdx.json /opt/policy-server/
# The policy's folder; the server unpacks saved_model.zip next to it.
COPY --chown=policy:policy examples/mouse_and_cheese/schema.yaml \
    examples/mouse_and_cheese/saved_model.zip /srv/policy/
RUN chown policy:policy /srv/policy

# /tmp is the one folder besides /srv/policy that has to be writable. The dashboard listens on every
# address, or `docker run -p` could not reach it; Ray asks for its token there.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    UVICORN_LOG_CONFIG=policy_server/log_config.json \
    POLICY_SERVER_HOME=/srv/policy \
    POLICY_SERVER_DASHBOARD_HOST=0.0.0.0

WORKDIR /opt/policy-server
USER 10001:10001

# HTTP, metrics, Ray's dashboard
EXPOSE 8000 8080 8256
STOPSIGNAL SIGTERM
# A policy may be fetched for 600 s and loaded for 300 s; the first good answer ends the wait.
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=3 \
    CMD ["python", "-S", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/readyz', timeout=4)"]

# A folder that is mounted at /srv/given is served instead of the example.
ENTRYPOINT ["tini", "--", "sh", "/opt/policy-server/place-policy.sh", "/srv/given"]
CMD ["uvicorn", "app:app", "--host", "0.0.0.0", "--port", "8000"]
