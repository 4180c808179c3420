"""Sends standard input with smtplib to the port given, after STARTTLS and a login."""

import smtplib
import ssl
import sys

port, user, password = sys.argv[1:]
message = sys.stdin.buffer.read().replace(b"\n", b"\r\n")
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
with smtplib.SMTP("127.0.0.1", int(port), "client.example", timeout=20) as client:
    client.starttls(context=context)
    client.login(user, password)
    client.sendmail("a@b.example", ["customer@example.org"], message)
