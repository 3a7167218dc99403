# devices: rxe siw
# timeout: 240
# form: long
# stage: interop
# uses: samba
#
# "Give Samba RDMA" as README says it: its commands, run as they stand there, with the unit's rights
# and no others; and what it has Samba tell Windows clients.
set -e
. "$REPO/xtask/guest/samba.sh"
. "$REPO/xtask/guest/mount.sh"
PEER="README" PROVIDER="gateway on verbs, cifs on $DEVICE" USERNAME=root
chapter=$(sed -n '/^## Give Samba RDMA/,/^## Why/p' "$REPO/README.md")
commands() { # the line before the block
    awk -v before="$1" '
        index($0, before) { found = 1 }
        found && /^```$/ { exit }
        block { print }
        found && /^```sh/ { block = 1 }' <<<"$chapter"
}

# Words of the commands that the guest has no need of, or has otherwise.
sudo() { "$@"; }
cargo() { [ -x "$TARGET/release/examples/gateway" ]; }
apt() { :; }
rdma() { [ "$2" != add ] || return 0; command rdma "$@"; }
journalctl() { cat /tmp/gateway.log; }
systemctl() { # runs what the unit runs
    local start
    # Not everywhere, but where it is nothing may be wrong for it.
    [ -z "$(type -P systemd-analyze)" ] ||
        systemd-analyze verify /etc/systemd/system/smbdirect-gateway.service
    start=$(sed -n 's/^ExecStart=//p' /etc/systemd/system/smbdirect-gateway.service)
    grep -q '^AmbientCapabilities=CAP_NET_BIND_SERVICE$' /etc/systemd/system/smbdirect-gateway.service
    setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all,+net_bind_service \
        --ambient-caps=-all,+net_bind_service --bounding-set=-all,+net_bind_service \
        $start >/tmp/gateway.log 2>&1 &
    until grep -q '^gateway on' /tmp/gateway.log; do
        kill -0 $! || { cat /tmp/gateway.log && return 1; }
        sleep 0.1
    done
}

interfaces=$(grep -o 'interfaces = lo "[^"]*"' <<<"$chapter" | sed "s/ADDRESS/$REMOTE/")
start_samba "$interfaces
    server multi channel support = yes"
STORE=$SAMBA_SHARE
# What Samba is laid over cannot be written to.
mount -t tmpfs tmpfs /usr/local/bin

as_written() { # the line before the commands
    local text
    text=$(commands "$1" | sed "s/USER/root/; s/SERVER/$REMOTE/; s/SHARE/share/")
    [ -n "$text" ]
    echo "$text"
    eval "$text"
}
mounted() {
    cd "$REPO"
    as_written "On a Linux client"
    by_rdma
    copies /mnt 0 1 4095 4096 1048577
    unmount /mnt
}
# What a client on TCP learns of the server's interfaces. Linux's asks if it may have channels.
told() {
    mount_share /mnt/a multichannel,max_channels=2
    grep -A4 'Server interfaces' /proc/fs/cifs/DebugData
    grep -A12 'Server interfaces' /proc/fs/cifs/DebugData | grep -q 'Capabilities: .*rdma'
    grep -A12 'Server interfaces' /proc/fs/cifs/DebugData | grep -q "IPv4: $REMOTE"
    unmount /mnt/a
}

cd "$REPO"
as_written "On Samba's host"
export PASSWD=secret
scenario "Linux client, as README says" 90 mounted
scenario "what Samba tells Windows clients" 60 told
pkill -TERM smbdirect-gatew
