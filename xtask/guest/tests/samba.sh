# devices: none
# timeout: 90
# long: 300
# stage: interop
# uses: samba
#
# The SMB client over our TCP transport against Samba, with and without signatures.
set -e
. "$REPO/xtask/guest/samba.sh"
start_samba
[ -z "$LONG" ] || sizes="--sizes 0,1,4095,4096,4097,65537,1MiB+1,64MiB+7"
for user in root guest; do
    timeout 120 smb-client --provider tcp --peer "Samba, user $user" --user $user --keep \
        --sums /tmp/sums --rows "$OUT/rows" $sizes 127.0.0.1:445
    (cd "$SAMBA_SHARE" && sha256sum -c --quiet /tmp/sums)
done
kill "$SAMBA_PID"
