"""Whether a server can be reached and trusted, said in a sentence before anything is started."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from hushprompt.errors import ConfigError

TIMEOUT_S = 10.0
EXPIRED, NOT_YET, WRONG_NAME = 10, 9, (62, 64)
"""OpenSSL's codes: a certificate that is over, that has not begun, and that is for other names or addresses."""


def check_trust(host: str, port: int, ca: Path) -> str:
    """Shake hands with a server.

    Args:
        host: name or address.
        port: of the server.
        ca: certificate of the authority that must have signed the server's.

    Returns:
        What keeps the server from being reached just now; empty if nothing does.

    Raises:
        ConfigError: something answers that cannot be trusted.
    """
    context = ssl.create_default_context(cafile=str(ca))
    where = f"The server at {host}:{port}"
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == EXPIRED:
            reason = "shows a certificate that has expired. Whoever runs the federation must renew it and restart it."
        elif error.verify_code == NOT_YET:
            reason = "shows a certificate that is not good yet. Is this machine's clock right?"
        elif error.verify_code in WRONG_NAME:
            reason = "shows a certificate for another name or address. Use the name that the certificate is for."
        else:
            reason = f"shows a certificate that {ca} did not sign: another server, or another authority's file."
        raise ConfigError(f"{where} {reason}") from error
    except ssl.SSLError as error:
        raise ConfigError(f"{where} does not speak TLS ({error.reason}). Is this the right port?") from error
    except OSError as error:
        return f"{where} cannot be reached ({error.strerror or error})."
