# devices: rxe siw
# timeout: 180
# stage: interop
#
# What `doctor` says about this machine and about servers: our own, one that speaks TCP only, both on
# one host (SMB Direct takes no port from the other), and the kernel's.
set -e
case $DEVICE in
rxe) port=445 other=5445 fabric=RoCE ;;
siw) port=5445 other=445 fabric=iWARP ;;
esac
says() { # pattern: some line of what doctor said last matches
    grep -qE -- "$1" /tmp/doctor && return 0
    echo "doctor does not say: $1"
    return 1
}
examined() { # status, words...: what doctor says, with this status
    local wanted=$1 status=0
    shift
    echo "$ doctor $*"
    timeout 60 doctor "$@" >/tmp/doctor 2>&1 || status=$?
    cat /tmp/doctor
    [ $status = "$wanted" ]
}

serve() { # words...: an echo server, and the port that it has taken
    rm -f /tmp/port
    echo_server "$@" --address "$REMOTE" --port-file /tmp/port >/tmp/server.log 2>&1 &
    server=$!
    until [ -s /tmp/port ]; do
        kill -0 $server || { cat /tmp/server.log && return 1; }
        sleep 0.1
    done
    cat /tmp/port
}

echo "=== our server"
serve --provider verbs
[ "$(cat /tmp/port)" = $port ]
examined 0 "$REMOTE"
says "pass $LOCAL_DEVICE +port 1: $fabric, link layer Ethernet, active"
says "pass +addresses +$LOCAL, $LOCAL6; SMB Direct on port $port"
says "$LOCAL_LINK +$LOCAL, interface [0-9]+, RDMA_CAPABLE"
says "quirk +soft-"
says "pass connect $port +[0-9.]+ ms"
says "pass negotiate $port +SMB Direct 1.0"
says "note connect $other "
says "SMB Direct works with $REMOTE: port $port, verbs, device $LOCAL_DEVICE"
direct=$server

echo "=== and one on TCP beside it"
serve --provider tcp
[ "$(cat /tmp/port)" = 445 ]
examined 0 "$REMOTE"
says "pass negotiate $port +SMB Direct 1.0"
says "pass TCP 445 "
kill $direct
wait $direct || true

echo "=== a server that speaks TCP only"
examined 1 "$REMOTE"
says "FAIL connect 445 "
says "FAIL connect 5445 "
says "pass TCP 445 "
says "SMB Direct cannot be used with $REMOTE, which has TCP port 445 open"
kill $server
wait $server || true

echo "=== ksmbd"
. "$REPO/xtask/guest/ksmbd.sh"
start_ksmbd
examined 0 "$REMOTE"
says "pass connect $port "
says "pass TCP 445 "
says "SMB Direct works with $REMOTE: port $port, verbs, device $LOCAL_DEVICE"
ksmbd.control -s
timeout 60 doctor --json >/tmp/doctor.json
grep -q '"usable":true' /tmp/doctor.json
