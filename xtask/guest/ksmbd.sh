# For test scripts: the kernel's SMB server on $REMOTE, with one share (/srv/share, user test,
# password secret). It listens on TCP port 445 and for RDMA on $PORT.
start_ksmbd() { # further lines of the global section
    mkdir -p /srv/share /etc/ksmbd /run/ksmbd
    # On the root's overlay: ksmbd lists a directory of tmpfs as empty.
    chmod 777 /srv/share
    cat >/etc/ksmbd/ksmbd.conf <<CONF
[global]
    netbios name = KSMBD
    workgroup = WG
    server min protocol = SMB3_00
    server max protocol = SMB3_11
    interfaces = $REMOTE_LINK
    bind interfaces only = yes
    $1
[share]
    path = /srv/share
    read only = no
    guest ok = yes
    force user = root
    force group = root
CONF
    : >/etc/ksmbd/ksmbdpwd.db
    ksmbd.adduser -a test -p secret
    ksmbd.mountd -n >/tmp/ksmbd.log 2>&1 &
    local i
    for ((i = 0; i < 100; i++)); do
        # The RDMA listener comes after the TCP one. Nothing may connect to it to find out: a
        # connection that is closed before its MPA request would end siw's listener.
        rdma resource show cm_id 2>/dev/null | grep -q LISTEN && return 0
        sleep 0.2
    done
    echo "ksmbd does not listen" >&2
    cat /tmp/ksmbd.log >&2
    return 1
}
