# devices: rxe siw
# timeout: 180
#
# Messages over a link that loses one packet of a hundred and delays the others by 2 ms: all arrive,
# in order and right; memory of a finished write may be used again while it is on the wire; and a
# client exposes memory while messages are sent again.
set -e
. "$REPO/xtask/guest/echo.sh"
for link in v0 v1; do
    tc qdisc add dev $link root netem delay 2ms loss 1%
done
unit-tests memory_of_a_finished_write --test-threads=1
unit-tests exposing_goes_on --test-threads=1
SIZES=1,1KiB,64KiB COUNT=20 CONNECTIONS=4 IN_FLIGHT=8
echo_over_the_wire --provider verbs -- --provider verbs
rm -f /tmp/direct.port
direct serve --provider verbs --address "$REMOTE" --port 0 --port-file /tmp/direct.port --once &
server=$!
direct client --provider verbs --address "$REMOTE" --port-file /tmp/direct.port \
    --sizes 4KiB,64KiB --total 1MiB
wait $server
dropped() { tc -s qdisc show dev $1 | grep -o 'dropped [0-9]*' | cut -d' ' -f2; }
echo "dropped on the way: $(dropped v0) and $(dropped v1) packets"
[ "$(dropped v0)" -gt 0 ] && [ "$(dropped v1)" -gt 0 ]
