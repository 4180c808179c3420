"""Signs and verifies mail with DKIM (RFC 6376): dkim_mail.py sign|verify KEY FILE..."""

import base64
import subprocess
import sys

import dkim

CANONICAL = [(head, body) for head in (b"simple", b"relaxed") for body in (b"simple", b"relaxed")]
SIGNED = [b"From", b"To", b"Subject", b"Date", b"X-Odd"]


def sign(key, path):
    """One signature for each canonicalisation, one on top of the other."""
    with open(path, "rb") as file:
        message = file.read()
    with open(key, "rb") as file:
        private = file.read()
    for number, canonical in enumerate(CANONICAL):
        signature = dkim.sign(
            message,
            b"s%d" % number,
            b"mkt.acme.example",
            private,
            canonicalize=canonical,
            include_headers=[name for name in SIGNED if b"\r\n%s:" % name in b"\r\n" + message],
        )
        message = signature + message
    with open(path, "wb") as file:
        file.write(message)


def verify(key, path):
    """Every signature holds."""
    public = subprocess.run(
        ["openssl", "rsa", "-in", key, "-pubout", "-outform", "DER"],
        check=True,
        capture_output=True,
    ).stdout
    record = b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)
    with open(path, "rb") as file:
        message = file.read()
    verifier = dkim.DKIM(message)
    for number in range(len(CANONICAL)):
        if not verifier.verify(idx=number, dnsfunc=lambda name, timeout=0: record):
            sys.exit("%s: signature %d does not hold" % (path, number))
    print("verified %d" % len(CANONICAL))


action, key, *paths = sys.argv[1:]
for path in paths:
    {"sign": sign, "verify": verify}[action](key, path)
