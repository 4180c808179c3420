"""Sends standard input with smtplib to the port given."""

import smtplib
import sys

message = sys.stdin.buffer.read().replace(b"\n", b"\r\n")
with smtplib.SMTP("127.0.0.1", int(sys.argv[1]), "client.example", timeout=20) as client:
    client.sendmail("news@mkt.acme.example", ["customer@example.org"], message, ["BODY=8BITMIME"])
