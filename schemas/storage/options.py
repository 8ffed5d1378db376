"""How buckets are reached. Secrets are none of it: they come from the environment of the process that needs them."""

import os
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "az": "az", "azure": "az", "abfs": "az", "abfss": "az", "adl": "az"}


class StorageOptions(BaseModel):
    """The section `storage` of a configuration. What it leaves out, the environment may say: `AWS_ENDPOINT_URL` etc."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    endpoint: str | None = Field(None, description="URL of an S3-compatible or Azure server; default the cloud's own")
    region: str | None = Field(None, description="of the bucket")
    virtual_host: bool | None = Field(None, description="the bucket is part of the host name, not of the path")
    anonymous: bool = Field(False, description="send no credentials, for public buckets")
    allow_http: bool = Field(False, description="allow endpoints without TLS")
    lease_s: float = Field(5, gt=0, description="how often a writer says that it is alive; three of them wake another")

    @field_validator("endpoint")
    @classmethod
    def _without_credentials(cls, endpoint: str | None) -> str | None:
        if endpoint and "@" in urlsplit(endpoint).netloc:
            raise ValueError("credentials have no place in it, for it is saved; they come from the environment")
        return endpoint

    def of_store(self, url: str) -> dict[str, Any]:
        """Options of obstore's store for the URL's scheme."""
        kind = scheme(url)
        given: dict[str, Any] = {"skip_signature": True} if self.anonymous else {}
        if self.endpoint:
            given["endpoint"] = self.endpoint
        if kind == "s3":
            given["checksum_algorithm"] = "SHA256"  # the server refuses what was damaged on its way
            if self.region:
                given["region"] = self.region
            if self.virtual_host is not None:
                given["virtual_hosted_style_request"] = self.virtual_host
        return given

    def of_client(self) -> dict[str, Any]:
        """Options of obstore's HTTP client."""
        # Given options of its own, obstore does not look at these variables any more.
        said = [
            os.environ.get(name, "").lower() for name in ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")
        ]
        is_allowed = self.allow_http or not {"1", "true"}.isdisjoint(said)
        return {"allow_http": True} if is_allowed else {}


def scheme(place: str) -> str | None:
    """`s3`, `gs` or `az` of a URL of an object store; None of a local path or another URL."""
    return _SCHEMES.get(urlsplit(place).scheme.lower()) if "://" in place else None
