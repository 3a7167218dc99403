# For test scripts: what crosses the cable, as tshark understands it.

start_capture() { # file
    tcpdump -i "$LOCAL_LINK" -s 0 -B 65536 -w "$1" 2>"$1.tcpdump" &
    CAPTURE=$!
    until grep -q 'listening on' "$1.tcpdump"; do sleep 0.1; done
}

stop_capture() { # file
    # What is in the kernel's buffer comes a little later.
    sleep 1
    kill -INT $CAPTURE
    wait $CAPTURE
    grep -q '^0 packets dropped by kernel' "$1.tcpdump"
}

# Prints what was negotiated ($NEGOTIATED), how many bytes went by RDMA ($PLACED) and in SMB Direct
# messages ($MESSAGES), and how many messages invalidated a token ($INVALIDATIONS). Fails if tshark
# finds something malformed or not of the protocols, or a message that is not whole. What it only
# warns of is left out: it does not understand the token in ksmbd's answer to NEGOTIATE.
#
# The fragments of messages are put together here, and the messages given to tshark once more, as
# they would be on TCP: its own reassembly takes all that are in one TCP segment for the first.
examine_capture() { # file
    # iWARP has no port of its own: tshark finds it by its handshake, if heuristics may look before
    # port numbers do. Sends are one DDP segment each; its reassembly of them loses all but the first
    # in a TCP segment.
    # Data that is placed is anything: tshark must not look for Ethernet types in it. It took some for
    # VLANs and IP, malformed.
    tshark -o infiniband.identify_payload:FALSE \
        -o tcp.try_heuristic_first:TRUE -o iwarp_ddp_rdmap.reassemble_iwarp_rdma_send:FALSE \
        -o smb_direct.reassemble_smb_direct:FALSE --disable-protocol smb2 -r "$1" \
        -T fields -E separator=';' -E occurrence=a -E aggregator=' ' \
        -e ip.src -e tcp.stream -e infiniband.bth.destqp -e infiniband.bth.psn \
        -e infiniband.bth.opcode -e infiniband.reth.dmalen -e iwarp_mpa.ulpdulength \
        -e iwarp_rdma.opcode -e smb_direct.data_length -e smb_direct.remaining_length \
        -e data.data -e smb_direct.version.negotiated -e smb_direct.preferred_send_size \
        -e smb_direct.max_receive_size -e smb_direct.max_fragmented_size \
        -e smb_direct.max_read_write_size -e _ws.malformed.expert -e frame.number -e tcp.len \
        -e frame.protocols -e tcp.segment -e tcp.analysis.retransmission 2>/dev/null >"$1.fields"
    awk -F';' -v messages="$1.messages" -f "$REPO/xtask/guest/wire-capture.awk" \
        "$1.fields" >"$1.summary"
    local fragments count encrypted faults
    read -r PLACED MESSAGES INVALIDATIONS fragments count encrypted faults <"$1.summary"
    NEGOTIATED=$(grep '^re[qs]' "$1.summary" || true)
    text2pcap -q -D -T 50000,445 "$1.messages" "$1.smb2" 2>/dev/null
    tshark -r "$1.smb2" -T fields -E separator=';' -E occurrence=a -E aggregator=' ' -e smb2.cmd \
        -e _ws.malformed.expert 2>/dev/null |
        awk -F';' '
            { headers += split($1, _, " ") }
            $2 != "" { malformed++ }
            END { print headers + 0, malformed + 0 }' >"$1.smb2.summary"
    local headers malformed
    read -r headers malformed <"$1.smb2.summary"
    echo "capture: $PLACED bytes by RDMA, $MESSAGES in $fragments SMB Direct messages," \
        "$INVALIDATIONS invalidations; $count SMB2 messages, $headers headers, $malformed" \
        "malformed; negotiated:"
    sed 's/^/  /' <<<"$NEGOTIATED"
    if [[ $faults != 0 || $malformed != 0 || $count = 0 || $((headers + encrypted)) -lt $count ]]; then
        cp "$1" "$OUT/faulty.pcap"
        echo "the capture has faults ($OUT/faulty.pcap):"
        grep '^fault' "$1.summary"
        return 1
    fi
    grep -q response <<<"$NEGOTIATED"
}

# Whether the one connection has negotiated these sizes; those to send, and to read and write, are
# the same of all.
negotiated() { # the request's sizes to receive and fragmented, the response's
    [ "$NEGOTIATED" = "request: send 1364, receive $1, fragmented $2
response: send 1364, receive $3, fragmented $4, read/write 8388608" ]
}
