"""How a receiver knows who called: each notice is signed with a secret of its own.

The form is that of Standard Webhooks (https://www.standardwebhooks.com), for which many languages
have a library: an HMAC-SHA256 over id, time and body, in base64.
"""

from __future__ import annotations

import base64
import hmac

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"

VERSION = "v1"


def signed(secret: bytes, notice: str, at: int, body: bytes) -> dict[str, str]:
    """Return the headers that show who sent this body, and when (seconds since the epoch)."""
    content = f"{notice}.{at}.".encode() + body
    mac = base64.b64encode(hmac.digest(secret, content, "sha256")).decode()
    return {ID: notice, TIMESTAMP: str(at), SIGNATURE: f"{VERSION},{mac}"}
