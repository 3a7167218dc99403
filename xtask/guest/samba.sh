# For test scripts: Samba on 127.0.0.1, TCP port $SAMBA_PORT (default 445), with one share
# ($SAMBA_SHARE, /srv/share unless set; user root, password secret; guests too). Where $SAMBA is
# unpacked says `cargo xtask samba`. In the guest it is laid over /usr; elsewhere ($SAMBA_HOME set) it
# runs from where it is.
start_samba() { # further lines of the global section
    local home=${SAMBA_HOME:-/tmp/samba} i
    local libraries=$SAMBA/usr/lib/x86_64-linux-gnu
    SAMBA_SHARE=${SAMBA_SHARE:-/srv/share}
    mkdir -p "$SAMBA_SHARE" "$home"/{lock,state,cache,pid,private,ncalrpc}
    if [ -n "$SAMBA_HOME" ]; then
        smb() { LD_LIBRARY_PATH="$libraries:$libraries/samba" "$SAMBA/usr/$@"; }
    else
        mount -t tmpfs -o size=600m tmpfs "$SAMBA_SHARE"
        mount -t overlay -o "lowerdir=$SAMBA/usr:/usr" overlay /usr
        smb() { "/usr/$@"; }
    fi
    chmod 777 "$SAMBA_SHARE"
    cat >"$home/smb.conf" <<CONF
[global]
    workgroup = WG
    server role = standalone server
    map to guest = bad user
    guest account = root
    bind interfaces only = yes
    interfaces = lo
    smb ports = ${SAMBA_PORT:-445}
    lock directory = $home/lock
    state directory = $home/state
    cache directory = $home/cache
    pid directory = $home/pid
    private dir = $home/private
    ncalrpc dir = $home/ncalrpc
    disable netbios = yes
    server min protocol = SMB3_00
    load printers = no
    printing = bsd
    log file = $home/log.smbd
    log level = 1
    $1
[share]
    path = $SAMBA_SHARE
    read only = no
    guest ok = yes
    force user = root
CONF
    printf 'secret\nsecret\n' | smb bin/smbpasswd -c "$home/smb.conf" -s -a root
    run_samba
}

run_samba() { # again, if it was ended
    local home=${SAMBA_HOME:-/tmp/samba} i
    smb sbin/smbd -F -s "$home/smb.conf" --debug-stdout >>"$home/smbd.log" 2>&1 &
    SAMBA_PID=$!
    for ((i = 0; i < 150; i++)); do
        ss -Htln "sport = :${SAMBA_PORT:-445}" | grep -q . && return 0
        sleep 0.2
    done
    echo "smbd does not listen" >&2
    cat "$home/smbd.log" >&2
    return 1
}
