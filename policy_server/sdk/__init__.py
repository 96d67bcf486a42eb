"""Client libraries: an OpenAPI document becomes zips of source code, kept by their content."""

from __future__ import annotations

from policy_server.sdk.languages import BUNDLE, CLIENT_MARK, LANGUAGES, LanguageName
from policy_server.sdk.openapi_document import CLIENTS_TAG, Document, prepare_document
from policy_server.sdk.store import Sdk, SdkStore, files_of

__all__ = [
    "BUNDLE",
    "CLIENTS_TAG",
    "CLIENT_MARK",
    "LANGUAGES",
    "Document",
    "LanguageName",
    "Sdk",
    "SdkStore",
    "files_of",
    "prepare_document",
]
