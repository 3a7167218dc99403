# For test scripts: the cable v0 <-> v1 is cut and mended. What arrives is dropped at both ends; who
# sends does not notice.
cut_link() {
    local link
    for link in v0 v1; do
        tc qdisc add dev $link ingress
        tc filter add dev $link parent ffff: protocol all u32 match u32 0 0 action drop
    done
}
mend_link() {
    local link
    for link in v0 v1; do
        tc qdisc del dev $link ingress
    done
}
