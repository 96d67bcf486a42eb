"""Headers that tell a browser what a page of the server may do; answers to programs have none."""

from __future__ import annotations

__all__ = ["PAGE_HEADERS"]

# Swagger UI and ReDoc begin by a script in their page, and write styles into it; ReDoc searches in
# a worker that it makes from a blob. All else comes from this server.
_CONTENT = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'unsafe-inline'",
        "worker-src 'self' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
PAGE_HEADERS = (
    (b"content-security-policy", _CONTENT.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
"""Of the documentation, its files, and the client libraries."""
