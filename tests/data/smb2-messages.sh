#!/bin/bash
# smb2-messages.sh CAPTURE: prints the SMB2 messages in a capture of SMB Direct, as tshark sees
#   them, one per line: the sender's IPv4 address and the message's bytes, both in hexadecimal. A
#   compounded message is several lines.
# smb2-messages.sh --check: compares the *.smb2 files beside this script with what it prints for
#   their captures.
set -eo pipefail

messages() {
    local capture=$scratch/capture
    zcat "$1" >"$capture"
    # iWARP has no port of its own: tshark finds it by its handshake, if heuristics may look before
    # port numbers do.
    tshark -o tcp.try_heuristic_first:TRUE -r "$capture" -Y smb2 -T jsonraw -j 'ip smb2' \
        2>"$scratch/errors" |
        awk '/"ip_raw": \[/ { getline; sender = substr($1, 26, 8) }
             /"smb2_raw": \[/ { getline; gsub(/[",]/, "", $1); print sender, $1 }' ||
        { cat "$scratch/errors" >&2; return 1; }
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ "$1" != --check ]; then
    messages "$1"
    exit
fi
cd "$(dirname "$0")"
for kept in *.smb2; do
    messages "${kept%.smb2}.pcap.gz" >"$scratch/messages"
    cmp "$scratch/messages" "$kept"
    echo "$kept: the same $(wc -l <"$kept") messages"
done
