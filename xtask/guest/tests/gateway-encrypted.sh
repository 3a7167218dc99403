# devices: rxe siw
# timeout: 360
# long: 600
# stage: interop
# uses: samba
#
# Encrypted sessions through the gateway: all data is in messages, none is placed, and the gateway
# says so once per connection.
#
# Mounted with `sign` as well: Linux 6.12's client looks at the largest message that the peer takes
# only if it signs, and else sends and asks for larger ones. With `seal` on ksmbd it cannot be tried:
# ksmbd leaves the header of encrypted messages out over SMB Direct.
set -e
. "$REPO/xtask/guest/samba.sh"
. "$REPO/xtask/guest/gateway.sh"
. "$REPO/xtask/guest/mount.sh"
PEER="cifs, gateway, Samba" USERNAME=root MEASURE=by_gateway
small="0 1 4095 4096 1048577"
start_samba "
[sealed]
    path = /srv/share
    read only = no
    guest ok = yes
    force user = root
    smb encrypt = required"
STORE=$SAMBA_SHARE

# A session that is encrypted, says the client.
sealed() { # options, sizes
    mount_share /mnt/a "rdma,cache=none,sign$1"
    by_rdma
    grep -E 'type: DISK .* encrypted' /proc/fs/cifs/DebugData
    copies /mnt/a "${@:2}"
    unmount /mnt/a
}
in_messages() { # bytes that crossed each way at least
    local warnings
    [[ $PLACED = 0 && $MESSAGES -ge $((2 * $1)) ]]
    warnings=$(grep -c '"warning":"its session is encrypted' "$GATEWAY_LOG")
    encrypted=$((encrypted + 1))
    echo "the gateway has warned of $warnings encrypted sessions"
    [ "$warnings" = $encrypted ]
}

encrypted_sessions() { # provider of the gateway
    PROVIDER="gateway on $1, cifs on $DEVICE" encrypted=0
    start_gateway --provider "$1"
    scenario "encrypted session" 150 sealed ,seal $small
    in_messages 1056770
    # The server asks for it, of this share alone.
    SHARE=sealed scenario "share that requires encryption" 150 sealed "" $small
    in_messages 1056770
    if [ -n "$LONG" ]; then
        scenario "encrypted copies" 200 sealed ,seal 32m
        in_messages 33554432
    fi
    stop_gateway TERM
    grep '"end"' "$GATEWAY_LOG"
}

encrypted_sessions verbs
[[ "$DEVICE" != siw || -z $LONG ]] || encrypted_sessions iwarp
