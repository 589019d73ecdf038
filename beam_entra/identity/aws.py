"""AWS STS: a web identity token of the worker's role, for outbound identity federation. boto3 speaks the protocol.

See: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetWebIdentityToken.html
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from beam_entra.errors import Diagnosis, IdentityError, IdentityRejected, IdentityUnavailable
from beam_entra.identity.redaction import redacted
from beam_entra.identity.rejection import NotHere, missing_extra

if TYPE_CHECKING:
    from beam_entra.identity.registry import Connection

__all__ = ["ask_sts"]

_LIFE_S = 300
_FIXES = {
    "AccessDenied": "allow the role sts:GetWebIdentityToken for this audience",
    "OutboundWebIdentityFederationDisabled": "enable outbound identity federation for the AWS account (IAM, account "
    "settings)",
    "OutboundWebIdentityFederationDisabledException": "enable outbound identity federation for the AWS account (IAM, "
    "account settings)",
    "ExpiredToken": "renew the worker's AWS credentials",
}


def ask_sts(audience: str, region: str, connection: Connection) -> str:
    """A web identity token for `audience`, signed RS256, good for five minutes.

    The request is signed with the AWS credentials that the worker's platform gives it, as boto3 finds them.

    Raises:
        NotHere: The worker has no AWS credentials.
        ConfigError: boto3 is not installed, or too old.
        IdentityUnavailable, IdentityRejected: STS answers with something else, or not at all.
    """
    try:
        from boto3.session import Session  # noqa: PLC0415 - an extra
        from botocore.config import Config  # noqa: PLC0415 - likewise
        from botocore.exceptions import (  # noqa: PLC0415 - likewise
            BotoCoreError,
            ClientError,
            CredentialRetrievalError,
            NoCredentialsError,
        )
    except ImportError:
        raise missing_extra("aws", 'assertion_from = "aws"') from None
    config = Config(
        connect_timeout=connection.timeouts.connect_s,
        read_timeout=connection.timeouts.read_s,
        retries={"total_max_attempts": 1},
    )
    failure: IdentityError
    try:
        with _hushed():
            client: Any = Session(region_name=region).client("sts", config=config)
            try:
                answer = client.get_web_identity_token(
                    Audience=[audience], SigningAlgorithm="RS256", DurationSeconds=_LIFE_S
                )
            finally:
                client.close()
        return str(answer["WebIdentityToken"])
    except AttributeError:
        raise missing_extra("aws", 'assertion_from = "aws" (with a boto3 that knows GetWebIdentityToken)') from None
    except NoCredentialsError:
        raise NotHere(
            IdentityRejected(
                "the worker has no AWS credentials to ask STS with",
                Diagnosis(hint='assertion_from = "aws" is for workers in AWS that run as a role'),
            )
        ) from None
    except CredentialRetrievalError:  # its text is the credential service's, or a credential_process's
        failure = IdentityUnavailable(
            "the worker's AWS credentials cannot be had",
            Diagnosis(hint="see that the credential service of the worker's platform is healthy and knows its role"),
        )
    except ClientError as error:
        failure = _refused(error.response)
    except (BotoCoreError, KeyError) as error:
        failure = IdentityUnavailable(
            f"AWS STS does not answer: {type(error).__name__}",
            Diagnosis(hint=f"see that the worker reaches STS in {region} and that its clock is right"),
        )
    raise failure


def _refused(answer: dict[str, Any]) -> IdentityError:
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(answer.get("Error", {}).get("Code", ""))
    said = redacted(str(answer.get("Error", {}).get("Message", "")))
    facts: dict[str, Any] = {
        "status": status,
        "code": code,
        "request_id": str(answer.get("ResponseMetadata", {}).get("RequestId", "")),
        "attempts": 1,
        "hint": _FIXES.get(code, "see what AWS CloudTrail says of the request"),
    }
    about = f"AWS STS answered HTTP {status}: {said or code}"
    if status in {408, 429} or status >= 500 or "Throttl" in code:
        return IdentityUnavailable(about, Diagnosis(**facts))
    return IdentityRejected(about, Diagnosis(**facts))


class _Hush(logging.Filter):
    """Drops botocore's debug records of one thread: they hold requests and answers word for word, tokens included."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or not getattr(self.thread, "hushed", False)


_HUSH = _Hush()


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing of botocore's is logged at DEBUG by this thread within the block."""
    names = [name for name in list(logging.root.manager.loggerDict) if name.partition(".")[0] in {"boto3", "botocore"}]
    for name in names:
        logging.getLogger(name).addFilter(_HUSH)  # adding it again changes nothing
    _HUSH.thread.hushed = True
    try:
        yield
    finally:
        _HUSH.thread.hushed = False
