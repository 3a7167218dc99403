# devices: none
# timeout: 900
# form: long
# stage: interop
# uses: samba
#
# The kernel's client on Samba over TCP: the control for what it does there through a gateway.
set -e
. "$REPO/xtask/guest/samba.sh"
. "$REPO/xtask/guest/mount.sh"
start_samba
PEER="cifs and Samba" PROVIDER=tcp STORE=$SAMBA_SHARE USERNAME=root REMOTE=127.0.0.1
small="0 1 4095 4096 1048577"

scenario "session" 60 session /mnt/a cache=none $small
scenario "signed session" 60 session /mnt/a cache=none,sign $small
mount_share /mnt/a cache=none
scenario "copies" 300 copies /mnt/a 1m 256m
scenario "random mix" 300 random_mix /mnt/a 32m
unmount /mnt/a
mount_share /mnt/a
scenario "source tree" 200 source_tree /mnt/a src xtask examples tests
unmount /mnt/a
scenario "4 mounts at once" 200 sessions 4 cache=none $small 16m
