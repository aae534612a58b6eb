"""Where a file comes from: the schemes that a `source` may have, and how each has to look."""

import re
from typing import Annotated

from pydantic import Field

from corral.api.types import Rule, Rules

SCHEMES = ("hf", "https", "http", "s3", "oci", "pvc", "file")


def _shape(scheme: str, pattern: str, message: str) -> Rule:
    """A rule for one scheme: whoever uses the scheme keeps its shape."""
    return Rule(
        cel=f"!self.startsWith('{scheme}://') || self.matches('{pattern}')",
        message=message,
        holds=lambda source: not source.startswith(f"{scheme}://") or re.search(pattern, source) is not None,
    )


RULES = (
    Rule(
        cel="self.matches('^(hf|https?|s3|oci|pvc|file)://.')",
        message="a source starts with hf://, https://, http://, s3://, oci://, pvc:// or file://",
        holds=lambda source: re.search(r"^(hf|https?|s3|oci|pvc|file)://.", source) is not None,
    ),
    _shape("hf", "^hf://[^/]+/[^/]+/[^/]", "an hf:// source is hf://ORG/REPO/FILE, or hf://ORG/REPO/FILE@REVISION"),
    _shape("s3", "^s3://[^/]+/[^/]", "an s3:// source is s3://BUCKET/KEY"),
    _shape(
        "oci", "^oci://[^/]+/.+(:[^/]+|@sha256:[0-9a-f]{64})$", "an oci:// source is oci://REGISTRY/REPO:TAG or oci://REGISTRY/REPO@sha256:DIGEST"
    ),
    _shape("pvc", "^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[^/]", "a pvc:// source is pvc://CLAIM/PATH, with a claim of the same namespace"),
    _shape("file", "^file:///[^/]", "a file:// source is file:///PATH, with an absolute path"),
    Rule(
        cel="!self.matches('^[a-z0-9]+://[^/]*@')",
        message="a source holds no user name or password: put them in a Secret and name it in secretRef",
        holds=lambda source: re.search(r"^[a-z0-9]+://[^/]*@", source) is None,
    ),
)

Source = Annotated[str, Field(max_length=2048, min_length=1), Rules(RULES)]
OptionalSource = Annotated[
    str,
    Field(max_length=2048),
    Rules(tuple(Rule(f"self == '' || ({rule.cel})", rule.message, lambda text, rule=rule: text == "" or rule.holds(text)) for rule in RULES)),
]
