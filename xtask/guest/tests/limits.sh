# devices: rxe siw
# timeout: 120
#
# What a user without privileges is told about locked memory and about device nodes.
set -e
as_nobody() {
    setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all "$@"
}
test=$(readlink -f "$BIN/unit-tests")
# Soft-RoCE and soft-iWARP count locked memory, as cards do.
(ulimit -l 1024 && SMBDIRECT_LIMITS=memory as_nobody "$test" limits_are_explained)
chmod 600 /dev/infiniband/*
SMBDIRECT_LIMITS=nodes as_nobody "$test" limits_are_explained
