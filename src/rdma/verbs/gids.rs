//! The GIDs of a port, by which InfiniBand and RoCE address it, as the kernel lists them.

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;

/// One entry of a port's GID table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gid {
    /// Its place in the table.
    pub index: u32,
    /// The GID; on RoCE version 2 an IP address of the interface.
    pub gid: Ipv6Addr,
    /// What it is for: "RoCE v2", "IB/RoCE v1"; `None` where the kernel does not say (iWARP).
    pub kind: Option<String>,
    /// The network interface that it belongs to, where it belongs to one.
    pub interface: Option<String>,
}

/// The entries that are in use.
pub(super) fn gids(device: &str, port: u8) -> Vec<Gid> {
    table(Path::new(&format!(
        "/sys/class/infiniband/{device}/ports/{port}"
    )))
}

fn table(port: &Path) -> Vec<Gid> {
    let Ok(entries) = fs::read_dir(port.join("gids")) else {
        return Vec::new();
    };
    let read = |kind: &str, index: u32| {
        let text = fs::read_to_string(port.join(kind).join(index.to_string())).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let entry = |index: u32| {
        let gid: Ipv6Addr = read("gids", index)?.parse().ok()?;
        (!gid.is_unspecified()).then(|| Gid {
            index,
            gid,
            kind: read("gid_attrs/types", index),
            interface: read("gid_attrs/ndevs", index),
        })
    };
    let mut gids: Vec<Gid> = entries
        .flatten()
        .filter_map(|file| entry(file.file_name().to_str()?.parse().ok()?))
        .collect();
    gids.sort_by_key(|gid| gid.index);
    gids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_in_use_are_listed_in_order() {
        let port = std::env::temp_dir().join(format!("smbdirect-gids-{}", std::process::id()));
        let write = |file: &str, text: &str| {
            let file = port.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("gids/10", "0000:0000:0000:0000:0000:ffff:0a00:0101\n");
        write("gids/0", "fe80:0000:0000:0000:0000:00ff:fe00:0001\n");
        write("gids/1", "0000:0000:0000:0000:0000:0000:0000:0000\n");
        write("gid_attrs/types/10", "RoCE v2\n");
        write("gid_attrs/ndevs/10", "v0\n");
        let found = table(&port);
        fs::remove_dir_all(&port).unwrap();
        assert_eq!(found.iter().map(|g| g.index).collect::<Vec<_>>(), [0, 10]);
        assert_eq!((&found[0].kind, &found[0].interface), (&None, &None));
        assert_eq!(found[1].gid.to_ipv4_mapped(), Some([10, 0, 1, 1].into()));
        assert_eq!(found[1].kind.as_deref(), Some("RoCE v2"));
        assert_eq!(found[1].interface.as_deref(), Some("v0"));
    }

    #[test]
    fn no_port_has_no_gids() {
        assert_eq!(gids("no-such-device", 1), []);
    }
}
