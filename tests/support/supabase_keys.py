"""Keys for Supabase's access tokens, one of each kind, made once per run."""

from __future__ import annotations

import functools
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ALGORITHMS = ("ES256", "ES512", "RS256", "RS512", "EdDSA", "HS256")


@functools.cache
def make_key(algorithm: str) -> str:
    """A private JSON Web Key as text, the same one at each call."""
    if algorithm.startswith("RS"):
        made = RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048), as_dict=True)
    elif algorithm.startswith("ES"):
        curve = ec.SECP256R1() if algorithm == "ES256" else ec.SECP521R1()
        made = ECAlgorithm.to_jwk(ec.generate_private_key(curve), as_dict=True)
    elif algorithm == "EdDSA":
        made = OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate(), as_dict=True)
    else:
        made = {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldC0"}
    return json.dumps({**made, "alg": algorithm})


def private_key(algorithm: str, kid: str | None = None) -> dict[str, Any]:
    """A private key for signatures. Its kid is the algorithm's name by default."""
    made = json.loads(make_key(algorithm))
    return {**made, "kid": kid or algorithm, "key_ops": ["sign", "verify"]}


def public_key(algorithm: str, kid: str | None = None) -> dict[str, Any]:
    """The public half of :func:`private_key`."""
    secret = {"d", "p", "q", "dp", "dq", "qi", "oth"}
    known = {k: v for k, v in private_key(algorithm, kid).items() if k not in secret}
    return {**known, "key_ops": ["verify"]}
