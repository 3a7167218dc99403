# devices: siw
# timeout: 420
#
# The software iWARP of the crate against the kernel's, in both roles, with and without CRC (siw
# uses it if asked).
set -e
. "$REPO/xtask/guest/echo.sh"

IN_FLIGHT=64
for crc in on off; do
    for roles in "iwarp verbs" "verbs iwarp"; do
        set -- $roles
        echo "=== server $1, client $2, CRC $crc"
        CONNECTIONS=1 COUNT=64 SIZES=1,3,701,1340,1341,4KiB
        echo_over_the_wire --provider "$1" --crc $crc -- --provider "$2" --crc $crc
        CONNECTIONS=8 COUNT=4 SIZES=1,64KiB,1MiB
        echo_over_the_wire --provider "$1" --crc $crc -- --provider "$2" --crc $crc
    done
done
