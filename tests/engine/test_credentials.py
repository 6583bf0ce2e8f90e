"""Credentials of NATS users: read from their file, never shown."""

import base64

import pytest

from spl.core.keys import verify
from spl.engine import credentials
from spl.engine.credentials import CredentialsError
from tests.engine.nkeys import seed_text

SEED = bytes(range(32))
TEXT = seed_text(SEED)
JWT = "eyJhbGciOiJ.eyJqdGkiOiJ.c2lnbmF0dXJl"
CREDS = f"""-----BEGIN NATS USER JWT-----
{JWT}
------END NATS USER JWT------

************************* IMPORTANT *************************
-----BEGIN USER NKEY SEED-----
{TEXT}
------END USER NKEY SEED------
"""


def test_a_seed_alone_answers_with_its_key_and_a_creds_file_with_its_jwt() -> None:
    found = credentials.read(TEXT + "\n")
    answer = found.answer("nonce")
    assert answer["nkey"] == credentials.public_text(found.key.public)
    assert answer["nkey"].startswith("U")
    with_jwt = credentials.read(CREDS).answer("nonce")
    assert with_jwt == {"jwt": JWT, "sig": answer["sig"]}


def test_the_signature_is_the_keys_over_the_nonce() -> None:
    found = credentials.read(TEXT)
    raw = base64.urlsafe_b64decode(found.answer("abc")["sig"] + "==")
    assert verify(found.key.public, b"abc", raw)


@pytest.mark.parametrize("text", ["", "SU", "password", TEXT[:-1], TEXT[:-1] + ("A" if TEXT[-1] != "A" else "B")])
def test_what_is_none_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        credentials.read(text)
    assert caught.value.code == "sink-auth"
    assert len(text) < 8 or text not in caught.value.message


def test_nothing_shows_a_secret() -> None:
    assert TEXT not in repr(credentials.read(CREDS))
    assert JWT not in repr(credentials.read(CREDS))
