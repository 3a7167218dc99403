# devices: none
# timeout: 300
# stage: interop
#
# The wire of the software iWARP as tshark understands it: an echo over loopback, with and without
# CRC, is captured, and every frame must be classified down to SMB Direct, none malformed, none with
# a bad checksum.
set -e
cd /tmp
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

record() { # on or off
    tcpdump -i lo -s 0 -B 65536 -U -w "$1.pcap" 'tcp port 5445' 2>"$1.tcpdump" &
    local recorder=$! server
    until grep -q 'listening on' "$1.tcpdump"; do sleep 0.1; done
    rm -f port
    echo_server --provider iwarp --crc "$1" --port 5445 --port-file port --accept 2 &
    server=$!
    echo_client --provider iwarp --crc "$1" --port-file port --connections 2 --count 8 \
        --sizes 1,4,20,1340,1341,4KiB,16KiB --in-flight 4
    wait $server
    sleep 1
    kill -INT $recorder
    wait $recorder
    cat "$1.tcpdump"
    grep -q '^0 packets dropped by kernel' "$1.tcpdump"
}

dissect() { # file, tshark's words
    local file=$1
    shift
    # iWARP has no port of its own: tshark finds it by its handshake, if heuristics may look before
    # port numbers do. Its reassembly of Sends, which are one DDP segment each here, loses all but
    # the first in a TCP segment.
    tshark -o tcp.try_heuristic_first:TRUE -o iwarp_ddp_rdmap.reassemble_iwarp_rdma_send:FALSE \
        -r "$file" "$@" 2>>tshark.errors
}

check() { # on or off
    local classified good bad
    # A line per TCP segment with data, each field with all its occurrences. What was sent twice was
    # seen already.
    dissect "$1.pcap" -Y 'tcp.len > 0 and !tcp.analysis.retransmission' \
        -T fields -E separator=';' -E occurrence=a -E aggregator=' ' \
        -e frame.protocols -e tcp.reassembled_in -e iwarp_mpa.ulpdulength -e iwarp_ddp.dv \
        -e iwarp_rdma.opcode -e smb_direct.credits.requested -e iwarp_mpa.bad_length \
        -e tcp.analysis.lost_segment >segments
    classified=$(awk -F';' '
        # A segment that ends within an FPDU is shown with the one that completes it.
        $1 !~ /:iwarp_mpa/ && $2 == "" { unknown++ }
        $1 ~ /malformed|short/ || $7 $8 != "" { malformed++ }
        { fpdus += split($3, _, " "); headers += split($4, _, " "); messages += split($6, _, " ") }
        { sends += gsub(/0x0[3456]/, "", $5) }
        END { print NR, unknown + 0, fpdus, headers, sends, messages, malformed + 0 }' segments)
    dissect "$1.pcap" -V | grep -o -E '(Good|Bad) CRC32' >crc || true
    good=$(grep -c Good crc) || true
    bad=$(grep -c Bad crc) || true
    set -- "$1" $classified
    echo "CRC $1: $2 segments with data, $3 not classified; $4 FPDUs," \
        "$5 with DDP and RDMAP headers; $6 Sends, $7 SMB Direct messages;" \
        "CRC good $good, bad $bad; malformed $8"
    [[ $2 -gt 0 && $3 = 0 && $8 = 0 ]]
    [[ $4 -gt 100 && $5 = "$4" ]]
    [[ $6 -gt 100 && $7 = "$6" ]]
    [ "$bad" = 0 ]
    if [ "$1" = on ]; then [ "$good" = "$4" ]; else [ "$good" = 0 ]; fi
}

for crc in on off; do
    record $crc
    check $crc
done
