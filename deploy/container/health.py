"""Ends with status 0 if the server in this container is alive: the health check of the image, which has no curl.

It asks `/health` at 127.0.0.1:8000, or at the address in TERNVL_HEALTH_URL, such as https://127.0.0.1:8443/health. The
certificate is not checked: the address is that of this container, and a certificate names others.
"""

from __future__ import annotations

import os
import ssl
import sys
from urllib.request import HTTPSHandler, ProxyHandler, build_opener


def main() -> int:
    """Ask once, through no proxy, and return the exit status."""
    address = os.environ.get("TERNVL_HEALTH_URL", "http://127.0.0.1:8000/health")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        build_opener(ProxyHandler({}), HTTPSHandler(context=context)).open(address, timeout=4).close()
    except (OSError, ValueError) as error:
        print(f"{address}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
