"""The RayService of `deploy/kubernetes/optional/`: the configuration of `ternvl cluster config` for KubeRay.

`python scripts/manifests.py` writes it with the other plain manifests.
"""

from __future__ import annotations

import textwrap

from ternvl.cluster.options import serve_config, yaml
from ternvl.cluster.settings import ClusterConfig, ClusterSettings
from ternvl.config import LoadingConfig, ServerConfig

SETTINGS = ClusterSettings(
    "OpenGVLab/InternVL3-1B",
    ClusterConfig(replicas=2, max_replicas=4, replica_cpus=4.0),
    LoadingConfig(quantization="auto"),
    server=ServerConfig(host="0.0.0.0", drain_timeout=60.0),
)
"""Keys are a file of the Secret `ternvl-keys`, as in the other manifests."""

_TEMPLATE = """\
# Written by `python scripts/manifests.py`; docs/cluster.md says how to use it. It needs the KubeRay operator, and an
# image with the extra: `--build-arg PACKAGES='ray[data,serve]==2.60.0'` (docs/containers.md).
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: ternvl
  namespace: ternvl
  labels: {app.kubernetes.io/name: ternvl, app.kubernetes.io/instance: ternvl}
spec:
  # serveConfigV2 is what `ternvl cluster config` prints.
  serveConfigV2: |
%(config)s
  rayClusterConfig:
    rayVersion: "2.60.0"
    enableInTreeAutoscaling: true
    headGroupSpec:
      rayStartParams: {num-cpus: "0", dashboard-host: "0.0.0.0"}
      template:
%(head)s
    workerGroupSpecs:
      - groupName: engines
        replicas: 2
        minReplicas: 2
        maxReplicas: 4
        rayStartParams: {}
        template:
%(worker)s
"""

_POD = """\
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001}
%(grace)s  containers:
    - name: %(name)s
      image: ternvl:0.1.0
      env:
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
        - {name: TERNVL_API_KEY_FILE, value: /keys/keys.toml}
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
%(ports)s      resources:
        requests: {cpu: "%(cpus)s", memory: %(memory)s}
        limits: {cpu: "%(cpus)s", memory: %(memory)s}
      volumeMounts:
        - {name: keys, mountPath: /keys, readOnly: true}
        - {name: ray, mountPath: /tmp/ray}
        - {name: shared-memory, mountPath: /dev/shm}
  volumes:
    - {name: keys, secret: {secretName: ternvl-keys}}
    - {name: ray, emptyDir: {}}
    - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: 1Gi}}
"""

_PORTS = """\
      ports:
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        - {name: serve, containerPort: 8000}
"""


def manifest(settings: ClusterSettings = SETTINGS) -> str:
    """Return the manifest for the settings of a cluster."""
    head = {"name": "ray-head", "cpus": 2, "memory": "4Gi", "ports": _PORTS, "grace": ""}
    grace = f"  terminationGracePeriodSeconds: {int(settings.server.drain_timeout) + 30}\n"
    cpus = int(settings.cluster.replica_cpus or 1) + 1  # one for the proxy and the ingress
    worker = {"name": "ray-worker", "cpus": cpus, "memory": "6Gi", "ports": "", "grace": grace}
    return _TEMPLATE % {
        "config": textwrap.indent(yaml(serve_config(settings)), " " * 4).rstrip(),
        "head": textwrap.indent(_POD % head, " " * 8).rstrip(),
        "worker": textwrap.indent(_POD % worker, " " * 10).rstrip(),
    }
