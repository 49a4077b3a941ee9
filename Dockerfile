# The commands in a container, on the CPU. Linted, not built by the project's own checks.
#   docker build -t fct-infer .
#   docker run --rm -v "$PWD:/data" fct-infer fct-fit --old old.npy --new new.npy -o h.bundle
FROM python:3.12-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --no-install-recommends -y g++ make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The wheel holds oneDNN and its licence: nothing to compile where it is installed.
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --no-install-recommends -y libgomp1 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
# hadolint ignore=DL3013
RUN wheel=$(echo /wheels/*.whl) \
 && pip install --no-cache-dir "${wheel}[cpu,parquet]" \
 && rm -r /wheels \
 && useradd --uid 1000 --create-home user
USER 1000
WORKDIR /data
CMD ["python", "-m", "fct_infer"]
