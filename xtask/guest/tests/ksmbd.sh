# devices: rxe siw
# timeout: 150
# stage: interop
#
# Our clients negotiate with the kernel's server and get its answer to an SMB2 NEGOTIATE.
set -e
. "$REPO/xtask/guest/ksmbd.sh"
start_ksmbd
rdma resource show cm_id
timeout 60 ksmbd verbs "$REMOTE:$PORT"
# Software iWARP has nobody to talk to on RoCE.
[ "$DEVICE" != siw ] || timeout 60 ksmbd iwarp "$REMOTE:$PORT"
ksmbd.control -s
