# devices: rxe siw
# timeout: 420
#
# Messages of 1 B to 1 MiB over the device: 64 in flight, on one connection and on eight, every byte
# verified.
set -e
. "$REPO/xtask/guest/echo.sh"

IN_FLIGHT=64
CONNECTIONS=1 COUNT=64 SIZES=1,2,1340,1341,4KiB,64KiB,1MiB
echo_over_the_wire --provider verbs -- --provider verbs
CONNECTIONS=8 COUNT=64 SIZES=1,1340,1341,4KiB
echo_over_the_wire --provider verbs -- --provider verbs
# The emulated machine moves some MB/s: 64 large ones in flight, on all connections together.
CONNECTIONS=8 COUNT=8 SIZES=64KiB,1MiB
echo_over_the_wire --provider verbs -- --provider verbs
