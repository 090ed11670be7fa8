#!/bin/sh
# A self-signed certificate for localhost and 127.0.0.1, and its key: for tests of TLS, and good for nothing else.
set -eu
cd "$(dirname "$0")"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days 36500 -subj "/CN=localhost" \
    -addext "subjectAltName=DNS:localhost,IP:127.0.0.1" -addext "basicConstraints=critical,CA:FALSE" \
    -keyout key.pem -out cert.pem
