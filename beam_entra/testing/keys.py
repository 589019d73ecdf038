"""RSA keys that sign RS256 and publish themselves as a JSON Web Key Set."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

__all__ = ["SigningKey", "base64url", "key_set"]


def base64url(data: bytes) -> str:
    """Base64url without padding, as JOSE writes it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


class SigningKey:
    """One RSA key pair of 2048 bits. The private half never leaves the object."""

    def __init__(self) -> None:
        self._private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        der = self._private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.kid = base64url(hashlib.sha256(der).digest()[:20])

    def sign(self, claims: Mapping[str, object]) -> str:
        """A JWT with these claims, `alg` RS256 and this key's `kid`."""
        return jwt.encode(dict(claims), self._private, algorithm="RS256", headers={"kid": self.kid})

    def public_jwk(self) -> dict[str, str]:
        """The public half as a JSON Web Key."""
        public = self._private.public_key().public_numbers()
        return {
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": self.kid,
            "n": base64url(public.n.to_bytes((public.n.bit_length() + 7) // 8)),
            "e": base64url(public.e.to_bytes((public.e.bit_length() + 7) // 8)),
        }


def key_set(keys: Iterable[SigningKey]) -> bytes:
    """The public halves as a JSON Web Key Set."""
    return json.dumps({"keys": [key.public_jwk() for key in keys]}).encode("ascii")
