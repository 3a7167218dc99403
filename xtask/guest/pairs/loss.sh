# devices: rxe siw
# timeout: 150
#
# Busy connections between two guests, whose link is cut for 5 s, then for good, and one of which is
# killed (tests/pair.rs says what must come of it). Run in both guests and on the host.
set -e
if [ "$GUEST" != host ]; then
    exec pair "$GUEST"
fi
both() { # flag: of both guests
    wait_flag "$1-a" && wait_flag "$1-b"
}
both busy-1
link a off
sleep 5
link a on
flag restored-1
both busy-2
link a off
flag cut-2
both ended-2
link a on
flag restored-2
both busy-3
kill_guest a
