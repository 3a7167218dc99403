# For wire-capture.sh: what the frames of one SMB Direct connection say, from tshark's fields. Writes
# the SMB2 messages in them for text2pcap, each fragment a TCP segment, into the file `messages`.
# Prints a line of sums, what was negotiated, and faults.

function fault(what) {
    if (faults++ < 10) found = found "fault: frame " $18 ": " what "\n"
}

# A fragment of a message, or all of it: the next one in its direction. Its bytes are hexadecimal.
function fragment(size, remaining, bytes,   direction, header) {
    # The client speaks first.
    if (client == "") client = $1
    direction = $1 == client ? "O" : "I"
    fragments++
    if (length(bytes) != 2 * size) fault("its data is not " size " bytes")
    if (left[direction] == 0) {
        count++
        if (bytes ~ /^fd/) encrypted++
        if (bytes !~ /^f[de]534d42/) fault("its message does not begin as SMB2 does")
        header = sprintf("%08x", size + remaining)
    } else if (size + remaining != left[direction]) {
        fault(left[direction] " bytes of its message were left, not " size + remaining)
    }
    left[direction] = remaining
    bytes = header bytes
    gsub(/../, "& ", bytes)
    print direction "\n000000 " bytes >messages
}

# Sent again: TCP, and RoCE.
$22 != "" || ($4 != "" && seen[$1, $3, $4, $5]++) { next }

$17 != "" { fault("malformed") }

# A segment that ends within an FPDU is named by the one that completes it.
$19 > 0 && $20 !~ /:iwarp_mpa/ { unknown[$18] }
$21 != "" {
    n = split($21, segment, " ")
    for (i = 1; i <= n; i++) delete unknown[segment[i]]
}

{
    n = split($9, size, " ")
    split($10, remaining, " ")
    split($11, data, " ")
    for (i = 1; i <= n; i++) in_messages += size[i]
}

# RoCE: a message is one frame; requests to write and to read say how much. SEND Last and SEND Only
# with Invalidate have the opcodes 22 and 23.
$2 == "" {
    placed += $6
    if ($5 ~ /^2[23]$/) invalidations++
    if (n == 1 && size[1] > 0) fragment(size[1], remaining[1], data[1])
}

# iWARP: any number of FPDUs in a TCP segment. Writes and Read Responses (14 bytes of header) are
# data, as is what messages carry.
$2 != "" {
    n = split($8, opcode, " ")
    split($7, fpdu, " ")
    sends = texts = 0
    for (i = 1; i <= n; i++) {
        if (opcode[i] ~ /[02]$/) {
            placed += fpdu[i] - 14
            if (fpdu[i] > 14) texts++
        } else if (opcode[i] ~ /[3456]$/) {
            if (opcode[i] ~ /[46]$/) invalidations++
            sends++
            if (size[sends] > 0) fragment(size[sends], remaining[sends], data[++texts])
        }
    }
}

$15 != "" {
    sizes = sizes ($12 == "" ? "request" : "response") ": send " $13 ", receive " $14 \
        ", fragmented " $15 ($16 == "" ? "" : ", read/write " $16) "\n"
}

END {
    for (frame in unknown) fault("a segment, " frame ", is not iWARP")
    for (direction in left) if (left[direction] != 0) fault("a message has no end")
    printf "%d %d %d %d %d %d %d\n%s%s", placed, in_messages, invalidations, fragments, count, \
        encrypted, faults, sizes, found
}
