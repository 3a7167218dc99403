# devices: rxe siw
# timeout: 300
# long: 1200
# stage: interop
#
# An SMB client over our channel against the kernel's server: files in messages, by direct placement
# and by direct placement with remote invalidation where windows work; over TCP as well. The server's
# own file system says that they are right, and a capture that the data crossed the cable as it
# should.
set -e
. "$REPO/xtask/guest/ksmbd.sh"
. "$REPO/xtask/guest/wire-capture.sh"
start_ksmbd "map to guest = bad user"
limit=100
[ -z "$LONG" ] || limit=400 sizes="--sizes 0,1,4095,4096,4097,65537,173911,1MiB+1,64MiB+7,256MiB"

client() { # provider, port, further options
    timeout $limit smb-client --provider "$1" --peer ksmbd --keep --sums /tmp/sums \
        --rows "${ROWS:-$OUT/rows}" "${@:3}" "$REMOTE:$2"
    (cd /srv/share && sha256sum -c --quiet /tmp/sums)
    rm -f /srv/share/*
}
# Guests do not sign. ksmbd signs the answer to a READ whose data it has placed over the wrong bytes;
# nobody noticed, as the kernel's client places nothing when it signs.
client verbs "$PORT" --user guest $sizes
[ "$DEVICE" != rxe ] || client windows "$PORT" --user guest --ways invalidate
# Software iWARP has nobody to talk to on RoCE.
[ "$DEVICE" != siw ] || client iwarp "$PORT" --user guest $sizes
client verbs "$PORT" --ways messages
client tcp 445 --ways messages $sizes
# More requests than the server gives credits for, in pieces of no round size. With data both ways
# ksmbd spends its last credit without a grant.
many="--in-flight 64 --chunk 65537 --together 64 --sizes 16MiB+3"
client verbs "$PORT" --user guest --ways messages $many
if [ -n "$LONG" ]; then
    client verbs "$PORT" --user guest $many
    for _ in {2..10}; do ROWS=/dev/null client verbs "$PORT" --user guest $many; done
    client tcp 445 --ways messages $many
fi

captured() { # provider, ways
    start_capture /tmp/wire
    timeout 60 smb-client --provider "$1" --user guest --ways "$2" --sizes 1,4097,173911 \
        --together 0 "$REMOTE:$PORT"
    stop_capture /tmp/wire
    examine_capture /tmp/wire
    negotiated 8192 1048576 1364 173910
    printf 'ksmbd\t%s on %s\tcapture of %s\tok\t%s\t%s\n' "$1" "$LOCAL_DEVICE" "$2" "$PLACED" \
        "$MESSAGES" >>"$OUT/rows"
}
bytes=$((2 * (1 + 4097 + 173911))) # there and back
placed() { # provider, ways, how many, of them with invalidation
    captured "$1" "$2"
    [[ $PLACED = $((bytes * $3)) && $MESSAGES -lt $((20000 * $3)) ]]
    # A request per direction for each file.
    [ "$INVALIDATIONS" = $((6 * $4)) ]
}
in_messages() { # provider
    captured "$1" messages
    [[ $PLACED = 0 && $MESSAGES -gt $bytes ]]
}
in_messages verbs
case $DEVICE in
rxe)
    placed verbs v1 1 0
    placed windows v1,invalidate 2 1
    ;;
siw)
    placed verbs v1 1 0
    placed iwarp v1,invalidate 2 1
    [ -z "$LONG" ] || in_messages iwarp
    ;;
esac
ksmbd.control -s
